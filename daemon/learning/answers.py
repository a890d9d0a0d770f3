"""What a version answers to samples, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines import Label, PredictEngine, Weights

OnPart = Callable[[], None]
# Predicted between two signs of life: slow networks answer a handful a second.
_PART_SAMPLES = 64


class LearningError(RuntimeError):
    """Learning cannot go on from here: a loss is no longer a number."""


def found_classes(
    predictor: PredictEngine, x: NDArray[np.float32], on_part: OnPart
) -> NDArray[np.int64]:
    """The class of each sample; an answer does not depend on the part that it is in.

    Args:
        predictor: Answers.
        x: float32 `[samples, *input_shape]`.
        on_part: Called after each part.

    Returns:
        int64 `[samples]`, places in the version's classes; -1 where it knows none.
    """
    found = []
    for start in range(0, len(x), _PART_SAMPLES):
        found.append(predictor.predict(x[start : start + _PART_SAMPLES]).class_index)
        on_part()
    return np.concatenate(found)


def right_answers(
    weights: Weights,
    open_predict: Callable[[Weights], PredictEngine],
    batch: tuple[NDArray[np.float32], NDArray[np.int64]],
    labels: Sequence[Label],
    on_part: OnPart,
) -> NDArray[np.bool_]:
    """Which answers of a version are right, by name: it may have other class places.

    Args:
        weights: The version's.
        open_predict: Opens what answers.
        batch: float32 `[samples, *input_shape]`, and class places, int64 `[samples]`.
        labels: Of each class place of the store.
        on_part: Called after each part.
    """
    x, truth = batch
    places = {label: place for place, label in enumerate(labels)}
    # The last entry is for -1, the answer of a version that knows no class.
    known = np.array([*(places.get(label, -1) for label in weights.classes), -1])
    with open_predict(weights) as predictor:
        return np.asarray(known[found_classes(predictor, x, on_part)] == truth)
