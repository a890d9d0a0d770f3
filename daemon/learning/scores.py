"""Scores of a stream: every sample is predicted before it is learned from.

The honest score of a learner on a stream: each sample tests once, and only then trains (Blum, Kalai
and Langford 1999, "Beating the hold-out"). Over all samples it remembers the beginning for ever;
a window and a fading factor (Gama, Sebastiao and Rodrigues 2013, "On evaluating stream learning
algorithms") say how things stand now. Forgetting is measured on the hold-out, with each decision:
how far each class lies below the best that any accepted version did on it (Chaudhry et al. 2018,
"Riemannian walk").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.serving.gate import Scores
from engines import Label

RECENT_SAMPLES = 500
CLASS_SAMPLES = 100
FADING_FACTOR = 0.999
SHOWN_CLASSES = 100  # in reports: the others are scored, too
_PREFIX = "scores."
_NONE = -1  # in place of a result that there is not yet


class StreamScores:
    """Right answers over all, of late, and by class; all of it goes into the checkpoint.

    Attributes:
        total: Samples scored.
        correct: Of them, right.
        recent: For each of the newest 500 samples, oldest first, whether it was right; bool.
        forgetting: At the last decision, mean over classes; None before the first.
    """

    def __init__(self) -> None:
        self.total = self.correct = 0
        self.recent = np.zeros(0, dtype=np.bool_)
        self.forgetting: float | None = None
        self._faded_total = self._faded_correct = 0.0
        # Of each class place the newest results, oldest first, and the best of a version.
        self._by_class = np.zeros((0, CLASS_SAMPLES), dtype=np.int8)
        self._best = np.zeros(0)

    def add(self, found: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Score answers, in order of arrival.

        Args:
            found: Class places answered, int64 `[samples]`; -1 for none.
            labels: Those that were right.
        """
        right = found == labels
        self.total += len(right)
        self.correct += int(right.sum())
        self.recent = np.concatenate([self.recent, right])[-RECENT_SAMPLES:]
        for hit in right.tolist():  # one by one: no other order of summing, whatever the blocks
            self._faded_total = FADING_FACTOR * self._faded_total + 1
            self._faded_correct = FADING_FACTOR * self._faded_correct + hit
        self._make_room(labels)
        for place in np.unique(labels):
            results = np.concatenate([self._by_class[place], right[labels == place]])
            self._by_class[place] = results[-CLASS_SAMPLES:]

    def judged(
        self, places: Sequence[int], serves: Sequence[float], *accepted: Sequence[float]
    ) -> None:
        """Take in what a decision has measured.

        Args:
            places: Class places in the hold-out.
            serves: Hold-out accuracy, for each of these, of the version that serves from here on.
            accepted: The same of other versions that serve or have served.
        """
        if not places:
            return
        index = np.array(places)
        self._make_room(index)
        for accuracies in (serves, *accepted):
            self._best[index] = np.fmax(self._best[index], accuracies)
        self.forgetting = float(np.mean(self._best[index] - serves))

    def measured(self, scores: Scores, labels: Sequence[Label], *, accepted: bool) -> None:
        """Take in a verdict.

        Args:
            scores: What it was made on.
            labels: Of each class place.
            accepted: Whether the candidate serves from here on, or what served before.
        """
        found, places = scores.classes, {label: place for place, label in enumerate(labels)}
        versions = (found.candidate_correct, found.incumbent_correct, found.best_correct)
        accuracies = [np.divide(correct, found.n).tolist() for correct in versions]
        held = [places[label] for label in found.labels]
        self.judged(held, *(accuracies if accepted else accuracies[1:]))

    def class_accuracies(self, labels: Sequence[Label]) -> dict[str, float]:
        """Of the first hundred classes, by label, as far as there are any.

        Args:
            labels: Of each class place.
        """
        shown = [
            (str(label), self.class_accuracy(place))
            for place, label in enumerate(labels[:SHOWN_CLASSES])
        ]
        return {label: accuracy for label, accuracy in shown if accuracy is not None}

    @property
    def accuracy(self) -> float | None:
        """Over all samples; None before the first."""
        return self.correct / self.total if self.total else None

    @property
    def recent_accuracy(self) -> float | None:
        """Over the newest samples; None before the first."""
        return float(self.recent.mean()) if len(self.recent) else None

    @property
    def faded_accuracy(self) -> float | None:
        """A sample counts 0.999 times what the one after it does; None before the first."""
        return self._faded_correct / self._faded_total if self._faded_total else None

    def class_accuracy(self, place: int) -> float | None:
        """Over the newest 100 samples of a class; None before its first."""
        if place >= len(self._by_class):
            return None
        results = self._by_class[place]
        return float(results[results != _NONE].mean()) if (results != _NONE).any() else None

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All of it, as arrays."""
        forgetting = np.nan if self.forgetting is None else self.forgetting
        return {
            f"{_PREFIX}counts": np.array([self.total, self.correct]),
            f"{_PREFIX}recent": self.recent,
            f"{_PREFIX}faded": np.array([self._faded_total, self._faded_correct]),
            f"{_PREFIX}forgetting": np.array([forgetting]),
            f"{_PREFIX}by_class": self._by_class,
            f"{_PREFIX}best": self._best,
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from `state`, in which there may be more than this.

        Raises:
            KeyError: There is less.
        """
        self.total, self.correct = map(int, state[f"{_PREFIX}counts"])
        self.recent = state[f"{_PREFIX}recent"].astype(np.bool_)
        self._faded_total, self._faded_correct = map(float, state[f"{_PREFIX}faded"])
        (forgetting,) = map(float, state[f"{_PREFIX}forgetting"])
        self.forgetting = None if np.isnan(forgetting) else forgetting
        self._by_class = state[f"{_PREFIX}by_class"].astype(np.int8)
        self._best = state[f"{_PREFIX}best"].astype(np.float64)

    def _make_room(self, places: NDArray[np.int64]) -> None:
        more = int(places.max(initial=-1)) + 1 - len(self._best)
        if more > 0:
            self._by_class = np.pad(self._by_class, ((0, more), (0, 0)), constant_values=_NONE)
            self._best = np.pad(self._best, (0, more), constant_values=np.nan)


def is_score(name: str) -> bool:
    """Whether an array of a checkpoint is one of `StreamScores.state`."""
    return name.startswith(_PREFIX)
