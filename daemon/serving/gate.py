"""The judge between learning and serving: no worse model is served.

A candidate is compared with the version that serves and with the best version so far, all on the
same hold-out samples, which none of them ever learned from. It must not lie more than the margin
below the better of the two. The best one is there because a margin against the incumbent alone is a
ratchet: a hundred swaps could each give up a little. It is scored again each time, so when the
world changes and it is no longer good, it no longer counts. Every refusal has one reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from daemon.config import GateSettings
from engines import PredictEngine, Weights, canary_agrees


@dataclass(frozen=True)
class Scores:
    """Paired hold-out result.

    Args:
        n: Hold-out samples, the same for all.
        incumbent_correct: Of them, right by the version that serves.
        best_correct: Of them, right by the best version so far, which may be an older one.
        candidate_correct: Of them, right by the candidate.
    """

    n: int
    incumbent_correct: int
    best_correct: int
    candidate_correct: int


@dataclass(frozen=True)
class Decision:
    """The verdict on one candidate, as it is kept and shown.

    Args:
        version: The candidate.
        incumbent: The version it would replace.
        accepted: Whether it may serve.
        reason: Why not: `damaged`, `engine`, `canary`, `too_few_samples`, `accuracy`, `storage`
            or `overtaken` (made for a version that no longer serves); None when accepted.
        scores: What it was judged by.
        margin: How far below the better of incumbent and best version its accuracy may lie.
    """

    version: int
    incumbent: int
    accepted: bool
    reason: str | None
    scores: Scores
    margin: float

    def to_json(self) -> dict[str, Any]:
        """For the ledger and `GET /models`."""
        n = max(1, self.scores.n)
        return {
            "decision": "accepted" if self.accepted else "refused",
            "incumbent": str(self.incumbent),
            "reason": self.reason,
            **asdict(self.scores),
            "incumbent_accuracy": self.scores.incumbent_correct / n,
            "best_accuracy": self.scores.best_correct / n,
            "candidate_accuracy": self.scores.candidate_correct / n,
            "margin": self.margin,
        }


def judge(
    candidate: Weights,
    incumbent: int,
    engine: PredictEngine,
    scores: Scores,
    settings: GateSettings,
) -> Decision:
    """Decide whether a candidate may serve.

    Args:
        candidate: Read back from its file and checked.
        incumbent: Version number that serves now.
        engine: The serving engine, opened on the candidate.
        scores: Paired hold-out result.
        settings: Margin and least number of samples.
    """
    reason = None
    if not canary_agrees(candidate, engine):
        reason = "canary"
    elif scores.n < settings.min_samples:
        reason = "too_few_samples"
    elif not within_margin(scores, settings.margin):
        reason = "accuracy"
    return Decision(candidate.version, incumbent, reason is None, reason, scores, settings.margin)


def becomes_best(scores: Scores) -> bool:
    """Whether an accepted candidate is the best version from here on: the newer of equals."""
    return scores.candidate_correct >= scores.best_correct


def within_margin(scores: Scores, margin: float) -> bool:
    """Whether the candidate's accuracy lies at most `margin` below the others'."""
    lost = max(scores.incumbent_correct, scores.best_correct) - scores.candidate_correct
    return lost <= margin * scores.n + 1e-6  # a count is never meant to fail by float rounding
