"""Progressive validation: every sample is predicted before it is learned from.

The honest score of a learner on a stream: each sample tests once, and only then trains (Blum, Kalai
and Langford 1999, "Beating the hold-out").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RECENT_SAMPLES = 500


@dataclass
class ProgressiveScore:
    """Right answers since the first sample, and over the newest 500.

    Args:
        total: Samples scored.
        correct: Of them, right.
        recent: For each of the newest samples, oldest first, whether it was right; bool.
    """

    total: int = 0
    correct: int = 0
    recent: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def add(self, right: NDArray[np.bool_]) -> None:
        """Count one result per sample, bool `[samples]`, in order of arrival."""
        self.total += len(right)
        self.correct += int(right.sum())
        self.recent = np.concatenate([self.recent, right])[-RECENT_SAMPLES:]

    @property
    def accuracy(self) -> float | None:
        """Over all samples; None before the first."""
        return self.correct / self.total if self.total else None

    @property
    def recent_accuracy(self) -> float | None:
        """Over the newest samples; None before the first."""
        return float(self.recent.mean()) if len(self.recent) else None
