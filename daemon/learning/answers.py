"""What a version answers to samples, a part at a time, and what is said where memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from engines import PredictEngine, is_out_of_memory

OnPart = Callable[[], None]
# Predicted between two signs of life: slow networks answer a handful a second.
_PART_SAMPLES = 64


class LearningError(RuntimeError):
    """Learning cannot go on from here: a loss is no longer a number."""


class MemoryShortageError(LearningError):
    """Memory ran out, twice where less could be tried; the learner is as a checkpoint has it."""


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


@contextlib.contextmanager
def shortage_named() -> Iterator[None]:
    """Memory that runs out inside is a `MemoryShortageError`, whichever allocator says so."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = first_line(error)
        raise MemoryShortageError(
            f"memory ran out while a version was made or scored: {why}"
        ) from error


def first_line(error: Exception) -> str:
    """Of what an error says; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
