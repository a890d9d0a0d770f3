"""What a training method is, whatever it does inside: fitted step by step, then judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import Samples, as_floats

# Rows asked about at once, so that judging needs little memory beside training.
_JUDGED_ROWS = 1000


class Method(ABC):
    """A network that is fitted step by step and asked how well it does."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Numbers that are learned: weights and biases."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the method took from the trial's recipe, defaults resolved; JSON values."""

    @abstractmethod
    def start_step(self, epoch: float) -> None:
        """Take the settings of the next step.

        Args:
            epoch: Epochs done, 2.25 a quarter through the third.
        """

    @abstractmethod
    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Learn from one batch.

        Args:
            x: float32 `[batch, *input_shape]`; not changed.
            labels: int64 `[batch]`, class indices.

        Returns:
            Loss before the update, mean over the batch.
        """

    @abstractmethod
    def accuracy(self, samples: Samples) -> float:
        """Share of samples answered rightly, a fraction."""


def share_right(
    predict: Callable[[NDArray[np.float32]], NDArray[np.int64]], samples: Samples
) -> float:
    """Share of samples whose predicted class index, int64 `[rows]`, is their label."""
    starts = range(0, len(samples), _JUDGED_ROWS)
    slices = [slice(start, start + _JUDGED_ROWS) for start in starts]
    right = sum(int((predict(as_floats(samples.x[s])) == samples.labels[s]).sum()) for s in slices)
    return right / len(samples)
