"""Where memory runs out: it is said in words of ours, and less is tried.

In a step, learning goes back to the checkpoint and once more from there, with half the samples a
step. Where a version is made or scored, the job fails; a later one tries again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from daemon.learning.answers import LearningError
from engines import is_out_of_memory

log = logging.getLogger(__name__)

Done = TypeVar("Done")


class MemoryShortageError(LearningError):
    """Memory ran out, twice where less could be tried; the learner is as a checkpoint has it."""


class StepSize:
    """How many samples a step takes: half, from when memory runs out until the process ends.

    Attributes:
        samples: So many.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def within_memory(self, work: Callable[[], Done], go_back: Callable[[], object]) -> Done:
        """Do it, and once more with half the samples where memory runs out.

        Args:
            work: Takes steps.
            go_back: Undoes what a failed step has left half done.

        Raises:
            MemoryShortageError: Memory ran out twice.
        """
        for samples in (self.samples, max(1, self.samples // 2)):
            self.samples = samples
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = first_line(error)
            # Outside the handler, which holds all that the failed step had made.
            log.warning(
                "memory ran out: learning goes on from the checkpoint",
                extra={"why": why, "batch_samples": samples},
            )
            go_back()
        raise MemoryShortageError(
            f"memory ran out twice, at last with {samples} samples a step: {why}; leave more "
            "memory free, or set learner.batch_samples or [model] to less"
        )


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
