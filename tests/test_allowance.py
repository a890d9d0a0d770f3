"""What the learner writes is bounded, so that cards last; nothing that was asked for waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.learning import allowance
from daemon.learning import process as learner_process
from daemon.learning.allowance import BURST_BYTES, WriteAllowance
from daemon.messages import JobStarted, Judged, Progress, Proposed, Train
from daemon.store import SampleStore
from tests.test_learner import fill
from tests.test_learner_process import SETTINGS, running


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    bytes_per_second=st.integers(1, 10**7),
    writes=st.lists(st.tuples(st.floats(0, 3600), st.integers(1, 10**8)), min_size=1),
)
def test_no_more_than_the_rate_the_burst_and_one_file_is_written(
    bytes_per_second: int, writes: list[tuple[float, int]]
) -> None:
    clock = Clock()
    allowed = WriteAllowance(bytes_per_second, clock)
    started = clock.now
    for wait, size in writes:
        clock.now += wait
        if allowed.allows():
            allowed.wrote(size)
            ceiling = bytes_per_second * (clock.now - started) + BURST_BYTES + size
            assert allowed.written_bytes <= ceiling + 1


def test_it_comes_back_at_the_rate() -> None:
    clock = Clock()
    allowed = WriteAllowance(1000, clock)
    allowed.wrote(BURST_BYTES + 5000)
    assert not allowed.allows()
    clock.now += 4.9
    assert not allowed.allows()
    clock.now += 0.2
    assert allowed.allows()


def test_room_for_another_file_is_less_than_leave_to_begin() -> None:
    allowed = WriteAllowance(1000, Clock())
    allowed.wrote(BURST_BYTES - 5)
    assert allowed.allows()
    assert allowed.allows(5)
    assert not allowed.allows(6)


def test_zero_is_no_limit() -> None:
    allowed = WriteAllowance(0)
    allowed.wrote(10**12)
    assert allowed.allows()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


def test_samples_wait_when_much_was_written_and_a_request_does_not(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "BURST_BYTES", 0)
    slow = SETTINGS.model_copy(update={"write_bytes_per_second": 1})
    fill(store, 100)
    with running(tmp_path, slow) as peer:
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        fill(store, 100, seed=1)
        heard = [peer.hear() for _ in range(3)]  # the last two a second apart, idle
        assert all(isinstance(report, Progress) for report in heard), heard
        assert heard[-1].backlog >= slow.block_samples
        files = [tmp_path / "versions" / "2.safetensors", tmp_path / "checkpoint.safetensors"]
        written = sum(report.written_bytes for report in heard)
        assert written == sum(file.stat().st_size for file in files)
        peer.say(Train(4))
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        while (idle := peer.hear_next(Progress)).steps:
            pass
        assert idle.backlog == 0


def test_a_backlog_is_learned_whole_when_little_may_be_written(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were each candidate to end a job as ever, what is learned would fall behind."""
    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 0.0)
    monkeypatch.setattr(allowance, "BURST_BYTES", 0)
    slow = SETTINGS.model_copy(update={"write_bytes_per_second": 10**7})
    fill(store, 400)
    with running(tmp_path, slow) as peer:
        for blocks in (1, 8):
            peer.hear_next(JobStarted)
            learned = 0
            while not isinstance(report := peer.hear_next(Progress, Proposed), Proposed):
                learned += report.samples
            assert learned >= blocks * slow.block_samples
            peer.say(Judged(report.version, accepted=True))


def test_a_request_ends_a_job_that_could_go_on_for_long(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "BURST_BYTES", 0)
    slow = SETTINGS.model_copy(update={"write_bytes_per_second": 10**7})
    fill(store, 400)
    with running(tmp_path, slow) as peer:
        peer.hear_next(JobStarted)
        peer.say(Train(4))
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        assert peer.hear_next(JobStarted).trigger == "manual"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
