"""The judge between learning and serving: no worse model is served.

A candidate's file is read back and checked; its values must lie where those of every healthy
network do; the serving engine must compute from them what the learner computed. Then it is compared
with the version that serves, with the best so far and with the newest good one, all on the same
hold-out samples, which none of them ever learned from. It must not lie more than the margin below
the best of these. Best and good are there because a margin against the incumbent alone is a
ratchet: a hundred swaps could each give up a little. They are scored again each time, so when the
world changes and they are no longer good, they no longer count. Every refusal has one reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from daemon.config import GateSettings
from engines import (
    EngineFailedError,
    EngineUnavailableError,
    Label,
    NonFiniteWeightsError,
    OutOfRangeError,
    PredictEngine,
    SaturatedError,
    Weights,
    canary_agrees,
    is_out_of_memory,
)

# What is checked, in order, and the reason that a candidate is refused for which fails it.
CHECKS = {
    "file": "damaged",
    "finite": "not_finite",
    "current": "overtaken",  # made for a version that no longer serves
    "range": "range",
    "saturation": "saturation",
    "engine": "engine",
    "canary": "canary",
    "samples": "too_few_samples",
    "accuracy": "accuracy",
}


@dataclass(frozen=True)
class ClassScores:
    """A paired hold-out result by class, a column for each number; a row is a class.

    Args:
        labels: Of the classes that the hold-out has samples of.
        n: Hold-out samples of each.
        incumbent_correct: Of them, right by the version that serves.
        best_correct: Of them, right by the best or the newest good version.
        candidate_correct: Of them, right by the candidate.
    """

    labels: tuple[Label, ...] = ()
    n: tuple[int, ...] = ()
    incumbent_correct: tuple[int, ...] = ()
    best_correct: tuple[int, ...] = ()
    candidate_correct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Paired hold-out result.

    Args:
        n: Hold-out samples, the same for all.
        incumbent_correct: Of them, right by the version that serves.
        best_correct: Of them, right by the best version so far, or the newest good one if that is
            right more often.
        candidate_correct: Of them, right by the candidate.
        candidate_alone: Of them, right by the candidate and wrong by the version that serves.
        incumbent_alone: The other way round.
        classes: The same by class.
        missing: Classes that the candidate knows and the hold-out has no sample of.
    """

    n: int
    incumbent_correct: int
    best_correct: int
    candidate_correct: int
    candidate_alone: int = 0
    incumbent_alone: int = 0
    classes: ClassScores = ClassScores()
    missing: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Effort:
    """What a candidate has cost, from the start of its job to its proposal.

    Args:
        last_seq: Highest sequence number that was learned.
        samples: New samples that were learned.
        seconds: Time that passed.
        joules: Energy of the whole board meanwhile; None where it is not known.
    """

    last_seq: int = 0
    samples: int = 0
    seconds: float = 0.0
    joules: float | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict on one candidate, as it is kept and shown.

    Args:
        version: The candidate.
        incumbent: The version it would replace.
        accepted: Whether it may serve.
        reason: Why not: one of `CHECKS`, or `storage`; None when accepted.
        scores: What it was judged by.
        margin: How far below the best of the versions compared its accuracy may lie.
        effort: What it has cost.
        min_samples: How many hold-out samples were wanted.
    """

    version: int
    incumbent: int
    accepted: bool
    reason: str | None
    scores: Scores
    margin: float
    effort: Effort = Effort()
    min_samples: int = 0

    def checks(self) -> dict[str, bool | None]:
        """By name, in order, whether the candidate passed; None: an earlier one was failed."""
        passed: dict[str, bool | None] = {}
        failed = False
        for check, reason in CHECKS.items():
            passed[check] = None if failed else reason != self.reason
            failed |= reason == self.reason
        return passed

    def served_by_class(self) -> dict[str, float]:
        """Hold-out accuracy by label of the version that serves from here on."""
        classes = self.scores.classes
        right = classes.candidate_correct if self.accepted else classes.incumbent_correct
        return {
            str(label): correct / n
            for label, n, correct in zip(classes.labels, classes.n, right, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """For the ledger and `GET /models`."""
        n = max(1, self.scores.n)
        scores = asdict(self.scores)
        return {
            "candidate": str(self.version),
            "decision": "accepted" if self.accepted else "refused",
            "incumbent": str(self.incumbent),
            "reason": self.reason,
            "checks": self.checks(),
            **scores,
            "incumbent_accuracy": self.scores.incumbent_correct / n,
            "best_accuracy": self.scores.best_correct / n,
            "candidate_accuracy": self.scores.candidate_correct / n,
            "delta": (self.scores.candidate_correct - self.scores.incumbent_correct) / n,
            "margin": self.margin,
            "min_samples": self.min_samples,
            **asdict(self.effort),
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
        candidate: Read back from its file and checked, up to the engine.
        incumbent: Version number that serves now.
        engine: The serving engine, opened on the candidate.
        scores: Paired hold-out result.
        settings: Margin and least number of samples.
    """
    reason = _reason(candidate, engine, scores, settings)
    return Decision(
        candidate.version,
        incumbent,
        reason is None,
        reason,
        scores,
        settings.margin,
        min_samples=settings.min_samples,
    )


def _reason(
    candidate: Weights, engine: PredictEngine, scores: Scores, settings: GateSettings
) -> str | None:
    try:
        if not canary_agrees(candidate, engine):  # nor does an answer that is no number
            return "canary"
    except EngineFailedError as error:
        return refusal(error)
    if scores.n < settings.min_samples:
        return "too_few_samples"
    return None if within_margin(scores, settings.margin) else "accuracy"


def refusal(error: Exception) -> str:
    """The reason that a candidate is refused for which an error keeps from being judged."""
    match error:
        case NonFiniteWeightsError():
            return "not_finite"
        case OutOfRangeError():
            return "range"
        case SaturatedError():
            return "saturation"
        case EngineUnavailableError() | EngineFailedError():
            return "engine"
    return "engine" if is_out_of_memory(error) else "damaged"


def becomes_best(scores: Scores) -> bool:
    """Whether an accepted candidate is the best version from here on: the newer of equals."""
    return scores.candidate_correct >= scores.best_correct


def within_margin(scores: Scores, margin: float) -> bool:
    """Whether the candidate's accuracy lies at most `margin` below the others'."""
    lost = max(scores.incumbent_correct, scores.best_correct) - scores.candidate_correct
    return lost <= margin * scores.n + 1e-6  # a count is never meant to fail by float rounding
