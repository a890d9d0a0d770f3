"""The learner's pace: a share of the time, a hold between two steps, and the same bits."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from daemon.config import LearnerSettings
from daemon.learning.pace import Pacer
from daemon.messages import Pace
from daemon.store import SampleStore
from engines import weights_digest
from tests.running import wait_for
from tests.test_learner import fill, make_learner


class Clock(threading.Condition):
    """Time that passes only by work and by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.alive: list[float] = []
        self.on_wait = lambda: None

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout + 1e-4  # as late as a kernel's timer
        self.on_wait()
        return False

    def say_alive(self) -> None:
        self.alive.append(self.now)


def pacer(clock: Clock) -> Pacer:
    made = Pacer(clock.say_alive, clock, clock)
    made.begin()
    return made


def work(pacer: Pacer, clock: Clock, steps: int, seconds: float) -> list[tuple[float, float]]:
    """When each step was taken."""
    taken = []
    for _ in range(steps):
        began = clock.now
        clock.now += seconds
        taken.append((began, clock.now))
        pacer.between_steps()
    return taken


@pytest.mark.parametrize("duty", [1.0, 0.9, 0.5, 0.25, 0.05])
@pytest.mark.parametrize("step_seconds", [0.0003, 0.005, 0.2])
def test_of_every_second_the_duty_is_worked(duty, step_seconds):
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(duty, None))
    began = clock.now
    taken = work(paced, clock, int(8 * duty / step_seconds) + 1, step_seconds)
    assert paced.worked_seconds == pytest.approx(len(taken) * step_seconds)
    assert (clock.now - began) * duty == pytest.approx(paced.worked_seconds, rel=0.02)
    for start in range(int(taken[-1][1] - began) - 1):
        window = began + start, began + start + 1
        worked = sum(max(0, min(b, window[1]) - max(a, window[0])) for a, b in taken)
        assert abs(worked - duty) <= step_seconds + 0.02


def test_a_step_longer_than_a_second_keeps_the_mean_and_says_that_it_lives():
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(0.25, None))
    began = clock.now
    work(paced, clock, 3, 4.0)
    assert clock.now - began == pytest.approx(48.0, rel=0.01)
    gaps = [b - a for a, b in itertools.pairwise(clock.alive)]
    assert sorted(gaps)[-3] < 1.0  # all but the steps themselves


def test_idle_time_earns_and_owes_nothing():
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(0.5, None))
    clock.now += 1000.0
    paced.begin()
    began = clock.now
    work(paced, clock, 100, 0.01)
    assert clock.now - began == pytest.approx(2.0, rel=0.02)
    assert paced.worked_seconds == pytest.approx(1.0)


def test_a_machine_that_slept_does_not_make_the_learner_sleep_as_long():
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(0.5, None))
    began = clock.now
    work(paced, clock, 1, 86400.0)
    assert clock.now - began - 86400 <= 61


def test_a_new_word_ends_a_long_sleep():
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(0.05, None))
    clock.on_wait = lambda: paced.follow(Pace(1.0, None)) if clock.now > 112 else None
    work(paced, clock, 1, 10.0)
    assert 112 < clock.now < 113


@pytest.mark.parametrize("step_seconds", [0.05, 0.75, 3.0])
def test_a_duty_that_changes_each_second_is_kept(step_seconds):
    """No more than the higher of the two, whatever a step takes; what is owed is not forgiven."""
    clock = Clock()
    paced = pacer(clock)
    began, duties = clock.now, [0.25, 0.1]

    def second() -> None:
        paced.follow(Pace(duties[int(clock.now - began) % 2], None))

    clock.on_wait = second
    second()
    while clock.now < began + 200:
        work(paced, clock, 1, step_seconds)
        second()
    assert 0.1 <= paced.worked_seconds / (clock.now - began) <= 0.25


def test_a_pause_is_sleep_that_was_owed_and_no_more():
    clock = Clock()
    paced = pacer(clock)
    paced.follow(Pace(0.25, None))

    def word() -> None:
        paced.follow(Pace(0.0, "hot") if 101.5 < clock.now < 103 else Pace(0.25, None))

    clock.on_wait = word
    work(paced, clock, 1, 1.0)
    assert clock.now == pytest.approx(104, abs=0.05)
    clock.on_wait = lambda: paced.follow(Pace(0.0 if clock.now < 300 else 0.25, "hot"))
    paced.follow(Pace(0.0, "hot"))
    work(paced, clock, 1, 1.0)
    began = clock.now
    clock.on_wait = lambda: None
    work(paced, clock, 1, 1.0)
    assert clock.now - began > 3.4  # a long pause is no credit, but for the last tick's


def test_a_pause_holds_between_two_steps_and_a_word_ends_it_at_once():
    """On the real clock, with the real threads."""
    alive: list[float] = []
    paced = Pacer(lambda: alive.append(time.monotonic()))
    paced.follow(Pace(0.0, "too hot"))
    assert paced.paused == "too hot"
    ended: list[float] = []
    thread = threading.Thread(
        target=lambda: (paced.begin(), paced.between_steps(), ended.append(time.monotonic()))
    )
    thread.start()
    wait_for(lambda: len(alive) >= 3, "signs of life while it holds", 10)
    assert not ended
    told = time.monotonic()
    paced.follow(Pace(1.0, None))
    thread.join(10)
    assert ended[0] - told < 0.4  # a sign of life is due only after 0.5
    assert paced.paused is None


def test_a_server_that_is_gone_holds_nobody():
    paced = Pacer(lambda: None)
    paced.follow(Pace(0.0, "too hot"))
    thread = threading.Thread(target=paced.between_steps)
    thread.start()
    paced.release()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_learned_does_not_depend_on_the_pace(tmp_path: Path) -> None:
    settings = LearnerSettings(block_samples=32, steps_per_block=6, batch_samples=16)
    paces = [Pace(0.3, None), Pace(0.0, "hot"), Pace(0.05, None)]
    with closing(
        SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=999)
    ) as store:
        fill(store, 120)

        def learned(on_step: Callable[[], None]) -> str:
            learner = make_learner(tmp_path, settings)
            learner.learn_block(on_step)
            learner.rehearse(5, on_step)
            return weights_digest(learner.export(version=2, parent=1))

        clock, words = Clock(), itertools.cycle(paces)
        paced = pacer(clock)
        clock.on_wait = lambda: paced.follow(next(words))
        paced.follow(next(words))

        def on_step() -> None:
            clock.now += 0.01
            paced.between_steps()

        assert learned(on_step) == learned(lambda: None)
    assert clock.now - 100 > 2 * paced.worked_seconds > 0
