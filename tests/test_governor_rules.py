"""The governor's arithmetic: levels with hysteresis, duty, budgets, hours, latency."""

from __future__ import annotations

import datetime
import os
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.governor.budget import HOUR_SECONDS, Budget
from daemon.governor.controller import State
from daemon.governor.duty import FINE_PERIODS, LEAST_DUTY, STEP, DutyControl
from daemon.governor.hours import Hours
from daemon.governor.latency import RecentLatencies
from daemon.governor.rules import Level, Rule
from tests.governor_fixtures import after, controller, state, well

FINE, NEAR, OVER = Level.FINE, Level.NEAR, Level.OVER


def judged(rule: Rule, *values: float | None) -> list[Level]:
    return [rule.judge(value) for value in values]


def test_a_level_is_left_later_than_it_is_reached():
    rule = Rule(85.0, 3.0)
    assert judged(rule, 81.9, 82.1, 81.0, 80.4, 81.9) == [FINE, NEAR, NEAR, FINE, FINE]
    assert judged(rule, 85.0, 85.1, 84.9, 80.0) == [NEAR, OVER, NEAR, FINE]


def test_a_least_is_a_limit_from_below():
    assert judged(Rule(100, 25, least=True), 200, 120, 99, 130, 140) == [
        *(FINE, NEAR, OVER, NEAR, FINE)
    ]


def test_without_a_reading_nothing_becomes_fine():
    assert judged(Rule(85.0, 3.0), None, 90.0, None, None, 20.0) == [FINE, OVER, NEAR, NEAR, FINE]


def run(control: DutyControl, *levels: Level, start: float = 0.0) -> list[float]:
    return [
        control.period(level, start + second, working=True, cap=1.0)
        for second, level in enumerate(levels)
    ]


def test_over_halves_and_over_again_pauses():
    assert run(DutyControl(1.0), FINE, OVER, OVER, OVER) == [1.0, 0.5, 0.0, 0.0]


def test_near_holds_and_five_fine_periods_add_a_tenth():
    duties = run(DutyControl(1.0), OVER, *[NEAR] * 20, *[FINE] * (2 * FINE_PERIODS))
    assert set(duties[:21]) == {0.5}
    assert duties[20 + FINE_PERIODS - 1] == 0.5
    assert duties[20 + FINE_PERIODS] == pytest.approx(0.5 + STEP)
    assert duties[-1] == pytest.approx(0.5 + 2 * STEP)


def test_near_a_limit_a_pause_ends_with_the_least_duty_each_time_later():
    """What nears it may be the memory that the paused learner holds."""
    control = DutyControl(1.0)
    now, waited = 0.0, []
    for _ in range(4):
        for _ in range(2):
            control.period(OVER, now, working=True, cap=1.0)
            now += 1
        assert control.duty == 0
        began = now
        while control.duty == 0:
            control.period(NEAR, now, working=True, cap=1.0)
            now += 1
            assert now - began < 2000
        assert control.duty == LEAST_DUTY
        waited.append(now - began)
    assert waited[0] >= 30
    assert all(later > 1.5 * earlier for earlier, later in pairwise(waited)), waited


def test_nobody_goes_on_blind_or_beyond_a_cap():
    control = DutyControl(1.0)
    run(control, OVER, OVER)
    for second in range(2, 4000):
        assert control.period(NEAR, float(second), working=True, cap=1.0, blind=True) == 0
    for second in range(4000, 8000):
        assert control.period(NEAR, float(second), working=True, cap=0.0) == 0


def test_one_period_that_is_not_fine_begins_the_count_anew():
    calm = [*[FINE] * (FINE_PERIODS - 1), NEAR]
    assert set(run(DutyControl(1.0), OVER, *calm * 5)) == {0.5}


def test_what_was_too_much_is_a_ceiling_and_each_failed_try_to_pass_it_takes_twice_as_long():
    control = DutyControl(1.0)
    now, waited = 0.0, []
    for _ in range(4):
        run(control, OVER, start=now)
        began = now
        while control.duty < 0.99:
            now += 1
            control.period(FINE, now, working=True, cap=1.0)
            assert now - began < 20_000
        waited.append(now - began)
        control.period(OVER, now, working=True, cap=1.0)
        now += 1
    assert all(later > 1.5 * earlier for earlier, later in pairwise(waited)), waited


def test_an_idle_learner_proves_nothing():
    control = DutyControl(1.0)
    control.period(OVER, 0.0, working=True, cap=1.0)
    for second in range(1, 2000):
        control.period(FINE, float(second), working=False, cap=1.0)
    assert control.duty == pytest.approx(0.75)  # what is known to be bearable
    for second in range(2000, 4000):
        control.period(FINE, float(second), working=True, cap=1.0)
    assert control.duty == 1.0


def test_a_cap_takes_at_once_and_gives_back_step_by_step():
    control = DutyControl(1.0)
    assert control.period(NEAR, 0.0, working=True, cap=0.25) == 0.25
    duties = [control.period(FINE, float(t), working=True, cap=1.0) for t in range(1, 60)]
    assert duties[FINE_PERIODS - 2] == 0.25
    assert duties[-1] == 1.0
    assert max(b - a for a, b in pairwise(duties)) <= STEP + 1e-9


@given(
    st.floats(LEAST_DUTY, 1.0),
    st.lists(
        st.tuples(st.sampled_from([*Level]), st.booleans(), st.floats(0.0, 1.0)), max_size=200
    ),
)
def test_whatever_comes_the_duty_keeps_its_word(most, periods):
    control = DutyControl(most)
    before, levels = most, []
    for second, (level, working, cap) in enumerate(periods):
        duty = control.period(level, float(second), working=working, cap=cap)
        levels.append(level)
        assert 0.0 <= duty <= min(most, cap)
        assert duty == 0 or duty >= min(LEAST_DUTY, before, cap)
        assert duty <= before + STEP + 1e-9  # up by steps alone
        if duty > before and not (before == 0 and duty == LEAST_DUTY):
            assert levels[-FINE_PERIODS:] == [FINE] * FINE_PERIODS
        if level is OVER:
            assert duty <= min(before, cap) / 2
        if levels[-2:] == [OVER, OVER]:
            assert duty == 0
        before = duty


@given(st.lists(st.floats(0, 50), min_size=2, max_size=300), st.floats(1, 500))
def test_a_budget_slides(uses, most):
    """Against the sum over the window, which may be up to a note longer than an hour."""
    budget, total, spans, now = Budget(most), 0.0, [], 0.0
    for use in uses:
        now += 60.0
        total += use
        spans.append((now, use))
        used = budget.used(total, now)
        least = sum(u for at, u in spans[1:] if at > now - HOUR_SECONDS)
        longer = sum(u for at, u in spans[1:] if at > now - HOUR_SECONDS - 60)
        assert least - 1e-6 <= used <= longer + 1e-6
        if used >= most:
            assert budget.spent(used)
        elif used < 0.9 * most:
            assert not budget.spent(used)


def test_a_total_that_cannot_be_read_for_a_while_changes_no_budget():
    budget = Budget(100.0)
    readings = [(0.0, 0.0), (60.0, 90.0), (120.0, 0.0), (180.0, 95.0), (240.0, 0.0)]
    assert [budget.used(total, now) for now, total in readings] == [0.0, 90.0, 90.0, 95.0, 95.0]
    assert budget.used(95.0, HOUR_SECONDS + 300) == 0.0


def test_a_spent_budget_waits_until_a_tenth_is_free_again():
    budget = Budget(100.0)
    assert [budget.spent(used) for used in (99.0, 100.0, 95.0, 90.0, 89.0, 95.0)] == [
        *(False, True, True, True, False, False)
    ]
    assert not Budget(0.0).spent(1e9)


@pytest.mark.parametrize(
    ("hours", "within", "without"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("08:30-17:00", ["08:30", "16:59"], ["08:29", "17:00", "00:00"]),
        ("00:00-23:59", ["00:00", "23:58"], ["23:59"]),
        ("", ["00:00", "12:00"], []),
    ],
)
def test_hours(hours, within, without):
    def contained(text: str) -> bool:
        moment = datetime.datetime.fromisoformat(f"2026-03-29T{text}:30")
        return Hours(hours).contain(moment)

    assert all(map(contained, within))
    assert not any(map(contained, without))


def test_hours_follow_local_time_over_a_change_to_summer_time(monkeypatch):
    """Each second of that night is inside or outside by what a clock on the wall shows."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        hours = Hours("01:30-03:30")
        midnight = datetime.datetime(2026, 3, 29, 0, 0, tzinfo=datetime.timezone.utc).timestamp()
        inside = [
            hours.contain(datetime.datetime.fromtimestamp(midnight - 3600 + 60 * minute))
            for minute in range(6 * 60)
        ]
        # 01:30 to 02:00, and 03:00 to 03:30: the hour between was left out that night.
        assert sum(inside) == 60
        assert sum(a != b for a, b in pairwise(inside)) == 2
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "TZ" not in os.environ or time.tzname


def test_the_tail_of_the_newest_predictions():
    latencies = RecentLatencies()
    for place in range(49):
        latencies.add(10.0, place / 1000)
    assert latencies.p99(10.0) is None  # too few
    for place in range(49, 100):
        latencies.add(10.0, place / 1000)
    assert latencies.p99(10.0) == 0.098
    assert latencies.p99(14.9) == 0.098
    assert latencies.p99(15.1) is None


def read(found: State) -> dict[str, float | None]:
    return {limit["name"]: limit["value"] for limit in found.to_json()["limits"]}


def test_each_limit_that_is_set_says_what_is_read_of_it_now():
    limits = {
        "max_watts": 9.0,
        "max_predict_seconds": 0.1,
        "budget_steps": 50,
        "budget_joules": 8.0,
    }
    judge = controller(**limits)
    first, blind, again = after(
        judge,
        well(steps=7, joules=3.0),
        well(watts=None, free_bytes=None, predict_seconds=None, steps=9, joules=3.0),
        well(watts=4.0, celsius=None, steps=9, joules=5.5),
    )
    set_now = {"max_celsius": 85.0, "min_free_bytes": 256 << 20, **limits}
    for found in (first, blind, again):
        assert {limit["name"]: limit["limit"] for limit in found.to_json()["limits"]} == set_now
    assert read(first) == {
        "max_watts": 5.0,
        "max_celsius": 45.0,
        "min_free_bytes": 4 << 30,
        "max_predict_seconds": 0.002,
        "budget_steps": 0,
        "budget_joules": 0.0,
    }
    assert {name for name, value in read(blind).items() if value is None} == {
        "max_watts",
        "min_free_bytes",
        "max_predict_seconds",
        "budget_joules",
    }
    assert read(blind)["budget_steps"] == 2
    assert {name for name, value in read(again).items() if value is None} == {"max_celsius"}
    assert read(again)["budget_joules"] == 2.5
    assert state(controller(max_celsius=0.0, min_free_bytes=0)).limits == ()
