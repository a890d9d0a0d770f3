"""The version that answers: one immutable object behind one reference.

A swap is one assignment. A request takes the reference once and keeps it, so it never sees two
versions mixed, and the old engine goes when the last request that holds it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import PredictEngine, Weights


@dataclass(frozen=True)
class Served:
    """One version, ready to answer.

    Args:
        weights: What it was opened from.
        engine: Answers for it.
    """

    weights: Weights
    engine: PredictEngine

    def answer(self, x: NDArray[np.float32]) -> list[dict[str, Any]]:
        """One JSON answer per sample.

        Args:
            x: float32 `[batch, *input_shape]`.

        Returns:
            `label` (null before anything was learned), `goodness` by class, and `margin`: best
            minus second-best goodness, null with fewer than two classes.
        """
        prediction = self.engine.predict(x)
        labels = self.weights.classes
        goodnesses = prediction.goodness[:, : len(labels)]
        answers: list[dict[str, Any]] = []
        for index, goodness in zip(prediction.class_index, goodnesses, strict=True):
            best = np.sort(goodness)[-2:]
            answers.append(
                {
                    "label": labels[index] if index >= 0 else None,
                    "goodness": [round(float(g), 6) for g in goodness],
                    "margin": round(float(best[1] - best[0]), 6) if len(best) == 2 else None,
                }
            )
        return answers


class ServingSlot:
    """Holds the version that answers now.

    Args:
        first: Serves until the first swap.
    """

    def __init__(self, first: Served) -> None:
        self._served = first
        self.failures = 0  # requests in a row that the engine has failed on it
        self.has_answered = False
        # Called after each failure, and after the first answer.
        self.on_news: Callable[[], object] = lambda: None

    @property
    def current(self) -> Served:
        """Take it once per request."""
        return self._served

    def swap(self, served: Served) -> None:
        """Let another version answer from here on."""
        self._served = served
        self.failures, self.has_answered = 0, False

    def answered(self, served: Served) -> None:
        """A request that took this version has its answer."""
        if served is self._served:
            self.failures = 0
            if not self.has_answered:
                self.has_answered = True
                self.on_news()

    def failed(self, served: Served) -> None:
        """The engine has failed a request that took this version."""
        if served is self._served:
            self.failures += 1
            self.on_news()
