"""Energy against traces whose integral is known in closed form."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.energy import BusyTime, EnergyMeter, Segment, Trace

SECONDS = 600.0
GAP = 5.0


class Power:
    """Watts as a function of time, and its integral from 0."""

    def __init__(self, watts: Callable[[float], float], joules: Callable[[float], float]) -> None:
        self.watts, self.joules = watts, joules


# 5 W, then 12 W for half of every 40 s: what a learner that comes and goes makes of a board.
def _steps(t: float) -> float:
    return 12.0 if t % 40 < 20 else 5.0


def _steps_joules(t: float) -> float:
    return 340 * (t // 40) + 12 * min(t % 40, 20) + 5 * max(t % 40 - 20, 0)


TRACES = {
    "constant": Power(lambda t: 7.0, lambda t: 7 * t),
    "ramp": Power(lambda t: 4 + t / 60, lambda t: 4 * t + t * t / 120),
    "waves": Power(lambda t: 7 + 3 * math.sin(t / 3), lambda t: 7 * t + 9 * (1 - math.cos(t / 3))),
    "steps": Power(_steps, _steps_joules),
}


def moments(*, jitter: float = 0.0, dropped: float = 0.0, seed: int = 0) -> list[float]:
    """One a second, each late by up to `jitter` s, a share lost, yet never four in a row."""
    draw = random.Random(seed)
    times = [0.0]
    for second in range(1, int(SECONDS)):
        lost = draw.random() < dropped and second - times[-1] < 3
        at = second + draw.random() * jitter
        times += [] if lost else [at]
    return [*times, SECONDS]


SAMPLINGS = {
    "on the beat": moments(),
    "late": moments(jitter=0.9),
    "lossy": moments(dropped=0.3, seed=1),
    "late and lossy": moments(jitter=0.9, dropped=0.3, seed=2),
}


def metered(times: list[float], watts: Callable[[float], float]) -> EnergyMeter:
    meter = EnergyMeter()
    for at in times:
        meter.add(at, watts(at), {"VDD_SOC": watts(at) / 4}, GAP)
    return meter


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", TRACES)
def test_energy_is_within_one_percent_of_the_integral(name, sampling):
    power = TRACES[name]
    energy = metered(SAMPLINGS[sampling], power.watts).energy()
    assert energy.board == pytest.approx(power.joules(SECONDS), rel=0.01)
    assert energy.rails == {"VDD_SOC": pytest.approx(power.joules(SECONDS) / 4, rel=0.01)}
    assert energy.gap_seconds == 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["constant", "ramp", "waves"])
def test_learning_gets_what_the_board_took_meanwhile(name, sampling):
    power, meter = TRACES[name], EnergyMeter()
    spans = [(10.2, 17.9), (100.0, 100.4), (300.5, 420.25)]  # one shorter than an interval
    events = [*((a, "begin") for a, _ in spans), *((b, "end") for _, b in spans)]
    for at, what in sorted([*events, *((t, "reading") for t in SAMPLINGS[sampling])]):
        if what == "reading":
            meter.add(at, power.watts(at), {}, GAP)
        else:
            getattr(meter.learning, what)(at)
    meter.learned(samples=64, versions=2)
    wanted = sum(power.joules(b) - power.joules(a) for a, b in spans)
    energy = meter.energy()
    assert energy.learning == pytest.approx(wanted, rel=0.01)
    assert energy.per_sample == pytest.approx(wanted / 64, rel=0.01)
    assert energy.per_version == pytest.approx(wanted / 2, rel=0.01)


def test_learning_that_is_all_the_time_gets_all_of_it():
    meter = EnergyMeter()
    meter.learning.begin(-1.0)
    for at in SAMPLINGS["late"]:
        meter.add(at, _steps(at), {}, GAP)
    energy = meter.energy()
    assert energy.learning == pytest.approx(energy.board, rel=1e-9)


def test_energy_of_learning_up_to_now_takes_the_newest_reading_for_what_came_after():
    meter = EnergyMeter()
    assert meter.learning_until(0.0) is None
    meter.add(10.0, 4.0, {}, GAP)
    meter.learning.begin(10.5)
    assert meter.learning_until(10.75) == 0.25 * 4.0
    meter.add(11.0, 6.0, {}, GAP)
    known = meter.energy().learning
    assert known == 0.5 * 5.5  # a straight line from 5 to 6 watts
    assert meter.learning_until(11.5) == known + 0.5 * 6.0
    meter.learning.end(11.25)
    assert meter.learning_until(20.0) == known + 0.25 * 6.0
    meter.add(12.0, 6.0, {}, GAP)
    assert meter.energy().learning == known + 0.25 * 6.0  # asking took nothing away


def means(times: list[float], joules: Callable[[float], float]) -> list[tuple[float, float]]:
    """What an energy counter makes of it: each reading's time, and the mean since the one before.

    The first has nothing before it that is looked at.
    """
    pairs = itertools.pairwise(times)
    return [(times[0], 0.0), *((b, (joules(b) - joules(a)) / (b - a)) for a, b in pairs)]


def _one_second_of_four(t: float) -> float:
    return 5 * t + 10 * (t // 4 + min(t % 4, 1))


def test_learning_gets_its_own_of_readings_that_are_means():
    """5 W idle; one second of each four is learning's, at 15 W: the straight line halves it."""
    meter = EnergyMeter()
    for at, watts in means([float(second) for second in range(401)], _one_second_of_four):
        meter.add(at, watts, {"package-0": watts}, GAP, mean=True)
        if at % 4 == 0:
            meter.learning.begin(at)
        elif at % 4 == 1:
            meter.learning.end(at)
    energy = meter.energy()
    assert energy.learning == pytest.approx(1500, rel=0.01)
    assert energy.board == energy.rails["package-0"] == pytest.approx(3000)


def test_after_a_long_gap_a_mean_is_of_an_unknown_part_of_it():
    trace = Trace()
    trace.add(0.0, 5.0, GAP, mean=True)
    assert trace.add(100.0, 7.0, GAP, mean=True) is None
    assert trace.add(101.0, 9.0, GAP, mean=True) == Segment(100.0, 101.0, 9.0, 9.0)
    assert (trace.joules, trace.gap_seconds) == (9.0, 100.0)


def test_a_long_gap_is_not_bridged_but_counted():
    meter = EnergyMeter()
    times = [t for t in SAMPLINGS["on the beat"] if not 200 < t < 290]
    for at in times:
        meter.add(at, 7.0, {"VDD_SOC": 2.0}, GAP)
    energy = meter.energy()
    assert energy.board == pytest.approx(7 * (SECONDS - 90))
    assert energy.rails["VDD_SOC"] == pytest.approx(2 * (SECONDS - 90))
    assert energy.gap_seconds == 90


def test_a_gap_of_exactly_the_limit_is_bridged():
    trace = Trace()
    trace.add(0.0, 4.0, GAP)
    assert trace.add(GAP, 6.0, GAP) == Segment(0.0, GAP, 4.0, 6.0)
    assert (trace.joules, trace.gap_seconds) == (25.0, 0.0)


def test_a_sample_learned_in_a_gap_is_taken_to_have_cost_as_much_as_the_others():
    meter = EnergyMeter()
    for at in [0.0, 1.0, 2.0, 100.0, 101.0]:
        meter.add(at, 10.0, {}, GAP)
    meter.learning.begin(101.0)
    meter.add(102.0, 10.0, {}, GAP)
    meter.add(202.0, 10.0, {}, GAP)  # the gap is longer than what is known of the job
    meter.learning.end(202.0)
    meter.learned(samples=101, versions=0)
    assert meter.energy().learning == pytest.approx(10.0)
    assert meter.energy().per_sample == pytest.approx(10.0)
    assert meter.energy().per_version is None


def test_nothing_is_known_before_two_readings():
    meter = EnergyMeter()
    meter.learning.begin(0.0)
    meter.learned(5, 1)
    meter.add(1.0, 7.0, {"VDD_SOC": 1.0}, GAP)
    energy = meter.energy()
    assert (energy.board, energy.learning, energy.rails) == (None, None, {})
    assert (energy.per_sample, energy.per_version) == (None, None)


def test_a_rail_that_comes_and_goes_is_integrated_while_it_is_there():
    meter = EnergyMeter()
    for at in range(11):
        meter.add(float(at), 7.0, {"VDD_SOC": 2.0} if at != 5 else {}, 1.5)
    assert meter.energy().rails["VDD_SOC"] == pytest.approx(2.0 * 8)
    assert meter.energy().board == pytest.approx(70)


def test_rails_are_bounded():
    meter = EnergyMeter()
    for at in range(100):
        meter.add(float(at), 1.0, {f"rail{at}": 1.0, "VDD_SOC": 1.0}, GAP)
    assert len(meter.energy().rails) <= 32
    assert meter.energy().rails["VDD_SOC"] == pytest.approx(99)


def test_time_that_does_not_go_on_is_refused():
    trace = Trace()
    trace.add(1.0, 1.0, GAP)
    with pytest.raises(ValueError, match=r"a reading at 1\.0 s follows one at 1\.0 s"):
        trace.add(1.0, 1.0, GAP)


watts = st.floats(0, 100)


@given(st.lists(st.tuples(st.floats(0.01, 10), watts), min_size=2, max_size=60))
def test_covered_time_and_gaps_make_up_all_time(readings):
    """And energy lies between what the least and the greatest reading would have made of it."""
    trace, at = Trace(), 0.0
    for seconds, value in readings:
        at += seconds
        trace.add(at, value, GAP)
    total = at - readings[0][0]
    assert trace.covered_seconds + trace.gap_seconds == pytest.approx(total)
    values = [value for _, value in readings]
    low, high = (f(values) * trace.covered_seconds for f in (min, max))
    assert low - 1e-6 <= trace.joules <= high + 1e-6


@given(st.lists(st.tuples(st.floats(0.01, GAP), watts), min_size=1, max_size=60))
def test_means_add_up_to_what_the_counter_counted(intervals):
    """However uneven the intervals: no trapezoid's error, at the ends or between."""
    trace, at = Trace(), 0.0
    trace.add(at, 0.0, 2 * GAP, mean=True)
    counted = 0.0
    for seconds, mean_watts in intervals:
        at += seconds
        counted += seconds * mean_watts
        trace.add(at, mean_watts, 2 * GAP, mean=True)
    assert trace.joules == pytest.approx(counted, abs=1e-6)


@given(watts, watts, st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_segment_is_the_sum_of_its_parts(first, last, cuts):
    segment = Segment(10.0, 11.0, first, last)
    edges = [10.0, *(10.0 + cut for cut in sorted(cuts)), 11.0]
    parts = sum(segment.joules(a, b) for a, b in itertools.pairwise(edges))
    assert parts == pytest.approx(segment.joules(10.0, 11.0), abs=1e-9)
    assert parts == pytest.approx((first + last) / 2, abs=1e-9)


def test_busy_time_is_cut_to_what_is_asked():
    busy = BusyTime()
    busy.end(0.5)  # not at work: nothing
    busy.begin(1.0)
    busy.begin(1.5)  # at work already: nothing
    busy.end(2.0)
    busy.begin(3.0)
    assert list(busy.between(0.0, 1.5)) == [(1.0, 1.5)]
    assert list(busy.between(1.5, 4.0)) == [(1.5, 2.0), (3.0, 4.0)]
    assert list(busy.between(2.0, 2.5)) == []
    busy.end(9.0)
    assert list(busy.between(4.0, 20.0)) == [(4.0, 9.0)]
    assert busy.ended_seconds == 7.0
