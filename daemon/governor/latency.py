"""How long the newest predictions took."""

from __future__ import annotations

import math
from collections import deque

_MOST = 4096
_WINDOW_SECONDS = 5.0
# Of fewer the largest one would decide alone.
_LEAST = 50


class RecentLatencies:
    """A ring of the newest; added to by the event loop, read by another thread."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, at: float, seconds: float) -> None:
        """Note one answer.

        Args:
            at: When it was ready, on the monotonic clock.
            seconds: How long it took.
        """
        self._newest.append((at, seconds))

    def p99(self, now: float) -> float | None:
        """The 99th of a hundred, in seconds, over the last 5 s; None: too few were answered."""
        taken = sorted(s for at, s in self._newest.copy() if at >= now - _WINDOW_SECONDS)
        if len(taken) < _LEAST:
            return None
        return taken[math.ceil(0.99 * len(taken)) - 1]
