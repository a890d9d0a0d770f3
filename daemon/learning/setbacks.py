"""What can stop a block or a candidate, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engines import WeightsError, is_out_of_memory


class LearningError(RuntimeError):
    """A block or a candidate came to nothing; the learner stands where a checkpoint has it."""


class DivergedError(LearningError):
    """A loss or a weight is no longer a number."""


class MemoryShortageError(LearningError):
    """Memory ran out, twice where less could be tried."""


@contextlib.contextmanager
def divergence_named() -> Iterator[None]:
    """Weights that must not serve are a `DivergedError`."""
    try:
        yield
    except WeightsError as error:
        raise DivergedError(str(error)) from error


@contextlib.contextmanager
def shortage_named() -> Iterator[None]:
    """Memory that ran out beside a step is a `MemoryShortageError`; nothing has changed then."""
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
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
