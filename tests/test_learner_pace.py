"""The learner's loop at the server's pace: no job begins while paused, one that runs is held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemon.messages import Alive, JobStarted, Judged, Pace, Progress, Proposed, Started, Train
from daemon.store import SampleStore
from tests.test_learner import fill
from tests.test_learner_process import Peer, running

PAUSED = Pace(0.0, "temperature")
FREE = Pace(1.0, None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    with closing(
        SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    ) as store:
        yield store


def accept(peer: Peer) -> None:
    peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_while_paused_no_job_begins_and_afterwards_what_was_asked_for_does(store, tmp_path) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        peer.say(PAUSED)
        peer.say(Train(4))
        peer.hear_next(Started)
        idle = [peer.hear() for _ in range(3)]
        assert all(isinstance(report, Progress) and report.backlog for report in idle)
        peer.say(FREE)
        assert peer.hear_next(JobStarted).trigger == "manual"
        accept(peer)


def test_a_job_is_held_between_two_steps_lives_and_goes_on(store, tmp_path) -> None:
    fill(store, 1200)
    with running(tmp_path) as peer:
        peer.hear_next(Started)
        peer.hear_next(Progress)
        peer.say(PAUSED)
        # What was already on its way, a block at most, and then only signs of life.
        peer.hear_next(Alive)
        peer.hear_next(Alive)
        held = [peer.hear() for _ in range(3)]
        assert {type(report) for report in held} == {Alive}
        assert sum(report.steps for report in held) == 0
        assert sum(report.seconds for report in held) == 0
        peer.say(FREE)
        peer.hear_next(Progress)
        accept(peer)


def test_signs_of_life_tell_of_all_work(store, tmp_path) -> None:
    fill(store, 1200)
    told, steps = [], 0
    with running(tmp_path) as peer:
        peer.say(Pace(0.2, None))
        began = time.monotonic()
        while not isinstance(report := peer.hear(), Proposed):
            if isinstance(report, Alive):
                told.append(report)
            steps += report.steps if isinstance(report, Progress) else 0
        passed = time.monotonic() - began
        peer.say(Judged(report.version, accepted=True))
    assert 0 < sum(alive.steps for alive in told) <= steps
    assert 0 < sum(alive.seconds for alive in told) < 0.5 * passed


def test_a_job_ends_when_its_time_is_up(store, tmp_path) -> None:
    fill(store, 20)
    with running(tmp_path) as peer:
        peer.hear_next(Started)
        began = time.monotonic()
        peer.say(Train(1_000_000, 1.0))
        accept(peer)
        assert time.monotonic() - began < 10
