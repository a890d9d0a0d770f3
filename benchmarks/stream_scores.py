"""Figures of a stream, from which answers were right.

With a_{t,j} the accuracy on task j after task t of T (the accuracy matrix):

    average accuracy  mean over t of mean_{j <= t} a_{t,j}
    forgetting        mean over j < T of max_{t < T} a_{t,j} - a_{T,j}
                      (Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", section 3)
    progressive       each sample is answered before it is learned; over all, and faded:
                      sum_i 0.999^(n-i) right_i / sum_i 0.999^(n-i) (Gama, Sebastiao and Rodrigues
                      2013, "On evaluating stream learning algorithms", section 4)
    recovery          samples after the change until the progressive accuracy of the newest
                      `WINDOW` of them is at most 2 points below a level; so at least `WINDOW`
    level             progressive accuracy of the last `LEVEL_SAMPLES` samples
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 250
LEVEL_SAMPLES = 500
_BELOW = 0.02
_FADING = 0.999

Matrix = Sequence[Sequence[float]]


def present_accuracies(matrix: Matrix, present: Sequence[int] | None) -> list[float]:
    """What each end's accuracy is: on all tasks so far, or on the concept that is present."""
    if present is None:
        return [float(np.mean(row[: place + 1])) for place, row in enumerate(matrix)]
    return [row[column] for row, column in zip(matrix, present, strict=True)]


def forgetting(matrix: Matrix) -> float:
    """How far tasks have fallen from their best, a fraction, mean over all but the last."""
    table = np.array(matrix)
    return float(np.mean(table[:-1, :-1].max(axis=0) - table[-1, :-1]))


def faded(right: NDArray[np.bool_]) -> float:
    """Progressive accuracy with fading factor 0.999."""
    weights = _FADING ** np.arange(len(right) - 1, -1, -1)
    return float((weights * right).sum() / weights.sum())


def level(right: NDArray[np.bool_]) -> float:
    """Progressive accuracy of the last samples."""
    return float(right[-LEVEL_SAMPLES:].mean())


def recovery(right: NDArray[np.bool_], wanted: float) -> int | None:
    """Samples until the windowed progressive accuracy is 2 points below `wanted`, or better.

    Args:
        right: Whether each sample after the change was answered rightly, in order.
        wanted: The level, a fraction.

    Returns:
        None where it never is.
    """
    if len(right) < WINDOW:
        return None
    sums = np.cumsum(np.concatenate([[0], right]))
    windowed = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    reached = np.flatnonzero(windowed >= wanted - _BELOW)
    return int(reached[0]) + WINDOW if len(reached) else None


def recovered(
    right: NDArray[np.bool_], change: int, fresh_level: float | None
) -> dict[str, int | float | None]:
    """Figures of a change of the world.

    Args:
        right: Whether each sample was answered rightly, in order.
        change: Samples before the change.
        fresh_level: What a learner that begins there reaches, a fraction.
    """
    before = level(right[:change]) if change else None
    after = right[change:]
    return {
        "change": change,
        "level_before": before,
        "fresh_level": fresh_level,
        "recovery_samples": None if before is None else recovery(after, before),
        "recovery_to_fresh_samples": None if fresh_level is None else recovery(after, fresh_level),
    }
