"""The learner keeps up with what serves: rollback, activation and probation over real pipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.messages import (
    Judged,
    Passed,
    Probed,
    Progress,
    Proposed,
    Retreated,
    Serves,
    Watch,
    Watched,
)
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from engines import Weights, weights_digest, weights_from_bytes
from tests.test_learner import fill
from tests.test_learner_process import running, store

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
        peer.say(Serves(number, sha256, True, (number, sha256), 7))
        assert peer.hear_next(Retreated).change == 7
        fill(store, 100, seed=1)
        again = peer.hear_next(Proposed)
        assert (again.version, proposed_weights(tmp_path, again).parent) == (3, 1)
        peer.say(Judged(3, accepted=True))


def test_a_change_that_comes_before_the_verdict_is_obeyed_before_it(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        peer.hear_next(Proposed)
        number, sha256 = first(tmp_path)
        peer.say(Serves(number, sha256, False, (number, sha256), 1))
        peer.say(Serves(number, sha256, True, (number, sha256), 2))
        assert peer.hear_next(Retreated).change == 2
        peer.say(Judged(2, accepted=True))  # made after both
        fill(store, 100, seed=1)
        again = peer.hear_next(Proposed)
        assert proposed_weights(tmp_path, again).parent == 2
        peer.say(Judged(3, accepted=False))


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
            peer.say(Passed(2))
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
