"""Whether a learner has room: one that is paused for want of memory gives none back but by ending.

A fresh one holds less: what an old one had taken for its jobs, and what lay unused between pieces
in use, is free again. It is started where memory is no longer short, and not at once, so that a
learner that never fits costs little more than a start now and then.
"""

from __future__ import annotations

import math

# For so long a paused learner may keep what is missing: a shortage that passes ends none.
_KEPT_SECONDS = 60.0
# After so long without one, the next shortage is another.
_PASSED_SECONDS = 180.0
# A learner that never fits grows for some seconds, is kept for a minute, and then gone for this.
_GONE_SECONDS = 300.0
_SHORT = "learning waits for memory: less is free than governor.min_free_bytes"
_GONE = "the learner was ended to give its memory back; it is started again within minutes"


class Room:
    """Told once a period how memory is, by one thread; asked by another."""

    def __init__(self) -> None:
        self.missing: str | None = None  # why no learner is to be started
        self._since: float | None = None  # first short in this pause, lately
        self._last_short = -math.inf
        self._ended = -math.inf  # when one had to

    def period(self, now: float, *, short: bool, held: bool) -> bool:
        """Take in one period.

        Args:
            now: Seconds on a clock that does not jump.
            short: Whether less memory is free than must be.
            held: Whether there is a learner, and it may not work.

        Returns:
            Whether it has to end.
        """
        if not held or now - self._last_short >= _PASSED_SECONDS:
            self._since = None
        if short:
            self._last_short = now
            if held and self._since is None:
                self._since = now
        end = short and self._since is not None and now - self._since >= _KEPT_SECONDS
        if end:
            self._ended = now
        self.missing = _SHORT if short else _GONE if now - self._ended < _GONE_SECONDS else None
        return end
