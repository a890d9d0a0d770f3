"""What retention has removed since the start, and how it is told: nobody asked for it by name.

Of a sample that was learned something stays in the weights; of one that was not, nothing stays.
Those are counted by themselves, and told as an error.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import NamedTuple

log = logging.getLogger(__name__)

_BETWEEN_SECONDS = 60.0


class Removed(NamedTuple):
    """What has gone since the start.

    Args:
        rows: How many.
        limit: Which limit they were beyond, the newest of them.
        unlearned: Samples among them that were to be learned, and had not been.
    """

    rows: int
    limit: str
    unlearned: int


class Removals:
    """Counts and tells; told to by the writer's thread, read by any."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter(
            {"rows": 0, "class": 0, "age": 0, "bytes": 0, "retired": 0}
        )
        self.unlearned = 0
        self._newest = ""
        # Of each limit, and of what was unlearned by itself: when it was told, and of how many.
        self._told: dict[tuple[str, bool], tuple[float, int]] = {}

    @property
    def summary(self) -> Removed | None:
        """What has gone; None: nothing."""
        rows = self.rows.total()
        return Removed(rows, self._newest, self.unlearned) if rows else None

    def note(self, limit: str, rows: int, unlearned: int) -> None:
        """Rows are gone for good: said at once, and then once a minute while it goes on.

        Args:
            limit: Which they were beyond.
            rows: How many.
            unlearned: Of them, samples that were to be learned, and had not been.
        """
        if not rows:
            return
        self.rows[limit] += rows
        self.unlearned += unlearned
        self._newest = limit
        if (since := self._due((limit, False), self.rows[limit])) is not None:
            extra = {"limit": limit, "rows": since, "since_start": self.rows[limit]}
            log.warning("old samples are removed to keep within a limit", extra=extra)
        if unlearned and (since := self._due((limit, True), self.unlearned)) is not None:
            extra = {"limit": limit, "samples": since, "since_start": self.unlearned}
            log.error("samples are removed that were not learned yet", extra=extra)

    def _due(self, what: tuple[str, bool], total: int) -> int | None:
        """How many more than when it was told last; None: that was just now."""
        now = time.monotonic()
        at, told = self._told.get(what, (now - _BETWEEN_SECONDS, 0))
        if now - at < _BETWEEN_SECONDS:
            return None
        self._told[what] = (now, total)
        return total - told
