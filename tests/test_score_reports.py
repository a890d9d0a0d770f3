"""What the learner's process reports of its scores, from the first block to the first verdict."""

from __future__ import annotations

from pathlib import Path

from daemon.messages import Judged, Progress, Proposed
from tests.test_learner_process import fill, running, store

__all__ = ["store"]  # the fixture


def test_scores_are_reported_and_forgetting_from_the_first_verdict_on(store, tmp_path: Path):
    fill(store, 200)
    with running(tmp_path) as peer:
        first = peer.hear_next(Progress)
        assert set(first.class_accuracies) == {"c0", "c1", "c2"}
        assert set(first.class_accuracies.values()) == {0.0}  # no class was known
        assert (first.faded_accuracy, first.forgetting) == (0.0, None)
        proposed = peer.hear_next(Proposed)
        found = proposed.scores
        assert found.n == store.counts.holdout == sum(found.classes.n)
        assert sorted(found.classes.labels) == ["c0", "c1", "c2"]
        assert found.candidate_correct == sum(found.classes.candidate_correct) > 0
        assert found.candidate_alone == found.candidate_correct - found.incumbent_correct
        assert found.missing == ()
        peer.say(Judged(proposed.version, accepted=True))
        while (forgetting := peer.hear_next(Progress).forgetting) is None:
            pass
        assert forgetting == 0.0
