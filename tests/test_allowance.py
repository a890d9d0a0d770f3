"""What the learner writes is bounded, so that cards last; nothing that was asked for waits."""

from __future__ import annotations

import os
import time
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
from tests.test_learner_process import SETTINGS, Peer, running


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


def test_what_is_larger_than_the_burst_is_allowed_once_nothing_is_owed() -> None:
    clock, size = Clock(), 2 * BURST_BYTES
    allowed = WriteAllowance(BURST_BYTES, clock)  # the burst a second
    for _ in range(3):
        assert allowed.allows(size)
        allowed.wrote(size)
        clock.now += 1.9
        assert not allowed.allows(size)
        clock.now += 0.2


def test_the_next_learner_owes_what_the_one_before_did(tmp_path: Path) -> None:
    kept, clock = tmp_path / "owed", Clock()
    WriteAllowance(10**6, clock, kept).wrote(BURST_BYTES)
    for _ in range(3):  # each crashes as soon as it has written
        following = WriteAllowance(10**6, clock, kept)
        assert not following.allows(10**7)
        following.wrote(10**7)
    assert not WriteAllowance(10**6, clock, kept).allows()
    now = time.time()
    os.utime(kept, (now + 3600, now + 3600))  # the clock was set back
    assert not WriteAllowance(10**6, clock, kept).allows()
    os.utime(kept, (now - 31, now - 31))
    assert WriteAllowance(10**6, clock, kept).allows()
    assert not WriteAllowance(10**6, clock, kept).allows(BURST_BYTES)


@pytest.mark.parametrize("content", [b"", b"\xff", b"nan"])
def test_a_damaged_record_of_what_is_owed_holds_nothing_up(tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "owed"
    kept.write_bytes(content)
    assert WriteAllowance(1, Clock(), kept).allows(BURST_BYTES)


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
        assert "learner.write_bytes_per_second" in str(heard[-1].paused)
        files = [tmp_path / "versions" / "2.safetensors", tmp_path / "checkpoint.safetensors"]
        written = sum(report.written_bytes for report in heard)
        assert written == sum(file.stat().st_size for file in files)
        peer.say(Train(4))
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        while (idle := peer.hear_next(Progress)).steps:
            pass
        assert idle.backlog == 0
        assert idle.paused is None
    fill(store, 100, seed=2)
    with running(tmp_path, slow) as peer:  # what the one before owed
        assert "may be written" in str(peer.hear_next(Progress, JobStarted).paused)


def test_a_backlog_is_learned_whole_when_little_may_be_written(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were each candidate to end a job as ever, what is learned would fall behind."""
    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 0.0)
    slow = SETTINGS.model_copy(update={"write_bytes_per_second": 1})
    fill(store, 400)
    with running(tmp_path, slow) as peer:
        for blocks in (1, 8):
            peer.hear_next(JobStarted)
            learned = 0
            while not isinstance(report := peer.hear_next(Progress, Proposed), Proposed):
                learned += report.samples
            assert learned >= blocks * slow.block_samples
            files = [tmp_path / "versions" / "2.safetensors", tmp_path / "checkpoint.safetensors"]
            size = sum(file.stat().st_size for file in files)
            monkeypatch.setattr(allowance, "BURST_BYTES", size)  # enough to begin once more
            peer.say(Judged(report.version, accepted=True))


def test_a_network_larger_than_the_burst_is_proposed_at_the_rate(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 0.0)
    monkeypatch.setattr(allowance, "BURST_BYTES", 1000)
    slow = SETTINGS.model_copy(update={"write_bytes_per_second": 10**7})
    fill(store, 1000)
    with running(tmp_path, slow) as peer:
        for _ in range(3):
            backlog = learned_until_proposed(peer)
            assert backlog >= slow.block_samples


def test_a_request_ends_a_job_that_could_go_on_for_long(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 1e9)
    fill(store, 1000)
    with running(tmp_path) as peer:
        peer.hear_next(JobStarted)
        peer.say(Train(4))
        assert learned_until_proposed(peer) >= SETTINGS.block_samples
        assert peer.hear_next(JobStarted).trigger == "manual"
        learned_until_proposed(peer)


def learned_until_proposed(peer: Peer) -> int:
    """How many samples still waited when a version was proposed, which is accepted."""
    backlog = 0
    while not isinstance(report := peer.hear_next(Progress, Proposed), Proposed):
        backlog = report.backlog
    peer.say(Judged(report.version, accepted=True))
    return backlog
