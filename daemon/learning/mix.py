"""What a step is made of: new samples beside replayed ones, and which class places count for each.

A row is told apart from class places that can be answered, which are those up to the highest that
a sample was learned of: higher ones would be pushed down before they exist. A lower one of which
none was (all are in the hold-out so far, or were withdrawn) would be answered at random if nothing
pushed it down. With `learner.mask = "new"` a new sample is told apart from the classes of its block
alone, so that a burst of few classes does not push down all others (ER-ACE, Caccia et al. 2022,
"New insights on reducing abrupt representation change in online continual learning"); where memory
holds none of some class, nothing else would keep the two apart, and that is not done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.config import LearnerSettings
from daemon.learning.replay import ReplayMemory
from daemon.store import StoredSample


class StepMix:
    """Chooses the rows of one block's steps.

    Args:
        new: The block; may be empty.
        memory: What is replayed.
        seen: Class places that a sample was learned of, bool `[max_classes]`.
        settings: Seed, share of new samples, mask.
    """

    def __init__(
        self,
        new: list[StoredSample],
        memory: ReplayMemory,
        seen: NDArray[np.bool_],
        settings: LearnerSettings,
    ) -> None:
        self._new = new
        self._memory = memory
        self._answered = np.arange(len(seen)) <= np.flatnonzero(seen).max(initial=-1)
        self._settings = settings
        self._for_new = self._answered
        if settings.mask == "new" and not (seen & ~memory.places).any():
            self._for_new = self._answered & ~seen
            self._for_new[[sample.class_index for sample in new]] = True

    def rows(
        self, step: int, batch_samples: int, new_ratio: float
    ) -> tuple[list[StoredSample], NDArray[np.bool_] | None]:
        """The rows of a step: new ones first.

        Args:
            step: Its number, which alone decides.
            batch_samples: Rows.
            new_ratio: Share of new ones.

        Returns:
            The rows, and the places of each, bool `[rows, max_classes]`; None: all.
        """
        numbers = np.random.default_rng([self._settings.seed, step])
        fresh = max(1, round(batch_samples * new_ratio)) if self._new else 0
        replayed = self._memory.draw(numbers, batch_samples - fresh)
        fresh = batch_samples - len(replayed) if self._new else 0
        rows = [*replayed]
        if fresh:
            drawn = numbers.integers(len(self._new), size=fresh)
            rows = [self._new[index] for index in drawn] + rows
        if self._settings.mask == "off":
            return rows, None
        places = np.empty((len(rows), len(self._answered)), np.bool_)
        places[:fresh], places[fresh:] = self._for_new, self._answered
        return rows, places
