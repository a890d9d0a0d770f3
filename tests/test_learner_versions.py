"""The learner keeps up with what serves: rollback, activation and probation over real pipes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from daemon import durable
from daemon.messages import (
    Busy,
    JobFailed,
    JobStarted,
    Judged,
    Passed,
    Probed,
    Progress,
    Proposed,
    Retreated,
    Serves,
    Started,
    Watch,
    Watched,
)
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from engines import Weights, weights_digest, weights_from_bytes
from tests.test_learner import fill
from tests.test_learner_process import good, running, store

__all__ = ["store"]  # the fixture


def proposed_weights(folder: Path, proposed: Proposed) -> Weights:
    path = VersionStore(folder / "versions", keep=3).path(proposed.version)
    return weights_from_bytes(path.read_bytes())


def first(folder: Path) -> tuple[int, str]:
    """Version 1, which serves when a learner of these tests begins."""
    content = VersionStore(folder / "versions", keep=3).path(1).read_bytes()
    return 1, weights_digest(weights_from_bytes(content))


def test_after_a_rollback_it_goes_back_and_builds_on_what_serves(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        assert peer.hear_next(Proposed).version == 2
        peer.say(Judged(2, accepted=True))
        number, sha256 = first(tmp_path)
        peer.say(Serves((number, sha256), True, (number, sha256), 7))
        assert peer.hear_next(Retreated).change == 7
        fill(store, 100, seed=1)
        again = peer.hear_next(Proposed)
        assert (again.version, proposed_weights(tmp_path, again).parent) == (3, 1)
        peer.say(Judged(3, accepted=True))


def test_a_restart_after_a_retreat_proposes_no_copy_of_what_serves(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        two = good(peer)
        fill(store, 100, seed=1)
        assert peer.hear_next(Proposed).version == 3
        peer.say(Judged(3, accepted=True))
        peer.say(Serves(two, True, two, 7, [2], two))
        assert peer.hear_next(Retreated, Proposed) == Retreated(7)
    with running(tmp_path, next_version=4, active=two) as peer:
        assert peer.hear_next(Started).resumed
        assert isinstance(peer.hear_next(Progress, JobStarted), Progress)
    with running(tmp_path) as peer:  # no version was whole: a new, untrained one serves
        assert peer.hear_next(JobStarted).trigger == "resumed"
        assert proposed_weights(tmp_path, peer.hear_next(Proposed)).classes
        peer.say(Judged(2, accepted=True))


def test_a_change_that_comes_before_the_verdict_is_obeyed_before_it(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        peer.hear_next(Proposed)
        number, sha256 = first(tmp_path)
        peer.say(Serves((number, sha256), False, (number, sha256), 1))
        peer.say(Serves((number, sha256), True, (number, sha256), 2))
        assert peer.hear_next(Retreated).change == 2
        peer.say(Judged(2, accepted=True))  # made after both
        fill(store, 100, seed=1)
        again = peer.hear_next(Proposed)
        assert proposed_weights(tmp_path, again).parent == 2
        peer.say(Judged(3, accepted=False))


def test_a_full_disk_puts_a_retreat_off_and_ends_no_learner(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()

    def replace_file(path: Path, content: bytes) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        durable.replace_file(path, content)

    monkeypatch.setattr("daemon.learning.process._REST_SECONDS", 0.5)
    monkeypatch.setattr("daemon.learning.checkpoints.replace_file", replace_file)
    fill(store, 100)
    with running(tmp_path) as peer:
        peer.hear_next(Proposed)
        peer.say(Judged(2, accepted=True))
        full.set()
        number, sha256 = first(tmp_path)
        peer.say(Serves((number, sha256), True, (number, sha256), 7))
        assert "No space left" in peer.hear_next(JobFailed).error
        fill(store, 100, seed=1)
        paused = []
        while len(paused) < 2:
            if isinstance(report := peer.hear(), Progress):
                paused.append(report.paused)
            else:
                assert isinstance(report, Busy)  # it tries again, and learns nothing
        assert all("No space left" in str(why) for why in paused)
        full.clear()
        assert peer.hear_next(Retreated, JobStarted) == Retreated(7)
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=False))


def test_it_says_that_it_reads_or_writes_what_may_take_long(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        told = []
        while not isinstance(report := peer.hear(), Proposed):
            told += [report] if isinstance(report, Busy) else []
        peer.say(Judged(2, accepted=True))
    assert [busy.why for busy in told] == ["the candidate is written", "the checkpoint is written"]
    size = (tmp_path / "checkpoint.safetensors").stat().st_size
    assert told[1].seconds == pytest.approx(60 + size / 1e6)
    with running(tmp_path) as peer:
        assert peer.hear() == Busy("a checkpoint is read", told[1].seconds)
        assert isinstance(peer.hear(), Started)


@pytest.mark.parametrize("good", [True, False])
def test_what_is_on_probation_is_predicted_before_it_is_learned(
    store: SampleStore, tmp_path: Path, good: bool
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        proposed = peer.hear_next(Proposed)
        peer.say(Judged(2, accepted=True))
        peer.say(Watch([Watched((2, proposed.sha256), first(tmp_path), 0)]))
        fill(store, 200, seed=1)
        counts = []
        while not isinstance(report := peer.hear_next(Probed, Proposed), Proposed):
            counts.append(report.n)
        assert counts
        assert counts == sorted(counts)
        assert report.version == 3
        # Version 1 knows no class, so that what 2 has right it has right alone.
        peer.say(Judged(3, accepted=False))
        if good:
            peer.say(Passed((2, proposed.sha256)))
        peer.say(Watch([]))
        fill(store, 100, seed=2)
        assert isinstance(peer.hear_next(Probed, Proposed), Proposed)
        peer.say(Judged(4, accepted=False))
        peer.hear_next(Progress)


def test_an_untrained_version_has_nothing_right(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        proposed = peer.hear_next(Proposed)
        peer.say(Judged(2, accepted=True))
        peer.say(Watch([Watched((2, proposed.sha256), first(tmp_path), 0)]))
        fill(store, 100, seed=1)
        report = peer.hear_next(Probed)
        assert (report.version, report.previous_correct, report.lost) == (2, 0, 0)
        assert 0 < report.correct <= report.n <= 32
        assert report.through_seq > 100
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=False))
