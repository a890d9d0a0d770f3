"""When a job begins by itself."""

from __future__ import annotations

from daemon.config import LearnerSettings
from daemon.learning.allowance import BURST_BYTES, WriteAllowance
from daemon.learning.triggers import Trigger, Triggers

SETTINGS = LearnerSettings(block_samples=32, max_wait_seconds=5.0)


class Bench:
    """Triggers with a clock moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.allowance = WriteAllowance(1, lambda: self.now)
        self.triggers = Triggers(SETTINGS, self.allowance, lambda: self.now)

    def due(self, backlog: int, *, begun: bool = True, rested: bool = True) -> Trigger | None:
        return self.triggers.due(backlog, begun=begun, rested=rested)


def test_a_block_is_due_at_once() -> None:
    assert Bench().due(32) == "samples"


def test_fewer_are_due_once_the_first_has_waited() -> None:
    bench = Bench()
    assert bench.due(31) is None
    bench.now += 4.9
    assert bench.due(31) is None
    bench.now += 0.2
    assert bench.due(31) == "time"
    bench.triggers.begin()
    assert bench.due(1) is None


def test_the_first_block_is_whole() -> None:
    bench = Bench()
    bench.due(31, begun=False)
    bench.now += 60
    assert bench.due(31, begun=False) is None
    assert bench.triggers.waits is not None
    assert "first 32 samples" in bench.triggers.waits
    assert "31 so far" in bench.triggers.waits
    assert bench.due(32, begun=False) == "samples"
    assert bench.triggers.waits is None


def test_who_waits_longer_than_a_pause_is_due_after_it() -> None:
    bench = Bench()
    assert bench.due(1, rested=False) is None
    bench.now += 60
    assert bench.due(1, rested=False) is None
    assert bench.due(1) == "time"


def test_what_a_restart_left_comes_before_samples_and_goes_with_any_job() -> None:
    bench = Bench()
    bench.triggers.unjudged = True
    assert bench.due(32) == "resumed"
    bench.triggers.begin()
    assert bench.due(0) is None


def test_drift_is_due_with_the_next_sample() -> None:
    bench = Bench()
    bench.triggers.drifted = True
    assert bench.due(0) is None
    assert bench.due(1) == "drift"


def test_samples_and_what_was_left_wait_while_too_much_was_written_but_drift_does_not() -> None:
    bench = Bench()
    bench.allowance.wrote(BURST_BYTES + 60)
    assert bench.due(32) is None
    assert "write_bytes_per_second" in (bench.triggers.waits or "")
    assert bench.due(32, rested=False) is None
    assert bench.triggers.waits is None  # that is not what it waits for
    bench.triggers.drifted = True
    assert bench.due(32) == "drift"
    assert bench.triggers.waits is None
    bench.triggers.begin()
    assert bench.due(0) is None
    assert bench.triggers.waits is None  # nothing is due
    bench.triggers.unjudged = True
    assert bench.due(0) is None
    assert "write_bytes_per_second" in (bench.triggers.waits or "")
    bench.now += 61
    assert bench.due(0) == "resumed"
    bench.triggers.begin()
    assert bench.due(32) == "samples"
