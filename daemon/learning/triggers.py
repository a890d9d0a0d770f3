"""When a job begins by itself: enough samples, one that waited, drift, or what a restart left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from daemon.config import LearnerSettings
from daemon.learning.allowance import WriteAllowance

Trigger = Literal["samples", "time", "drift", "resumed", "manual"]


class Triggers:
    """Says what a job is due for.

    Args:
        settings: Of the learner.
        allowance: While nothing is left of it, all waits but drift.
        clock: Seconds that only grow.

    Attributes:
        unjudged: Something was learned that no candidate shows.
        drifted: No job has been begun for the newest drift.
        waits: Why no job begins though learning is possible, and it is not for want of new samples.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        allowance: WriteAllowance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unjudged = self.drifted = False
        self.waits: str | None = None
        self._settings = settings
        self._allowance = allowance
        self._clock = clock
        self._waiting_since: float | None = None  # the oldest sample that is not learned

    def due(self, backlog: int, *, begun: bool, rested: bool) -> Trigger | None:
        """What for, if a job is to begin now.

        Args:
            backlog: Samples to learn.
            begun: Whether anything was learned: the first block must be whole, for it fixes the
                standardisation.
            rested: Whether learning is possible now.
        """
        if not backlog:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self._clock()
        self.waits = None
        if not rested:
            return None
        if backlog and self.drifted:
            return "drift"
        trigger = self._wanted(backlog, begun)
        if trigger is None and not begun:
            self.waits = (
                f"learning begins with the first {self._settings.block_samples} samples that have "
                f"a label and are outside the hold-out; there are {backlog} so far"
            )
        elif trigger is not None and not self._allowance.allows():
            self.waits = "learning waits until more may be written: learner.write_bytes_per_second"
            trigger = None
        return trigger

    def _wanted(self, backlog: int, begun: bool) -> Trigger | None:
        if self.unjudged:
            return "resumed"
        if backlog >= self._settings.block_samples:
            return "samples"
        since = self._waiting_since
        if since is None or not begun:
            return None
        return "time" if self._clock() - since >= self._settings.max_wait_seconds else None

    def begin(self) -> None:
        """A job begins, for whatever reason: it proposes all that is learned."""
        self.unjudged = self.drifted = False
        self.waits = self._waiting_since = None
