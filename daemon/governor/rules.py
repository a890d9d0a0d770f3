"""One limit each: from a reading to `fine`, `near` or `over`.

`over` is beyond the limit, `near` within a band on its safe side, in which the duty is held. The
band is wide enough that one step of the duty up from `fine` ends in it and not beyond the limit;
`fine` is reached again half a band below it, so that noise does not flip the level.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_FINE_AGAIN_BANDS = 1.5


class Level(enum.IntEnum):
    """How a reading lies to its limit."""

    FINE = 0
    NEAR = 1
    OVER = 2


@dataclass(frozen=True)
class Reason:
    """Why learning is slowed or paused.

    Args:
        reason: One word; a label of `ffedge_throttled`.
        text: The same in plain words, with figures and units.
        value: What was read, in the limit's unit; None: nothing.
        limit: The limit; None: it is no number.
    """

    reason: str
    text: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Finding:
    """What a rule says in one period."""

    level: Level
    reason: Reason


class Rule:
    """A limit with a memory of the level it was at.

    Args:
        limit: The most that may be read; with `least`, the least.
        band: How far on its safe side `near` reaches.
        least: Whether readings must stay above the limit and not below it.
    """

    def __init__(self, limit: float, band: float, *, least: bool = False) -> None:
        if band < 0:
            raise ValueError(f"a band of {band} has no width")
        self.limit = limit
        self._band = band
        self._sign = -1.0 if least else 1.0
        self._level = Level.FINE

    def judge(self, value: float | None) -> Level:
        """The level of a reading; without one, learning gets no more than it has: not `fine` again.

        Args:
            value: In the limit's unit.
        """
        if value is None:
            self._level = min(self._level, Level.NEAR)
            return self._level
        excess = self._sign * (value - self.limit)
        calm = -self._band * (1.0 if self._level is Level.FINE else _FINE_AGAIN_BANDS)
        if excess > 0:
            self._level = Level.OVER
        elif excess > calm:
            self._level = Level.NEAR
        else:
            self._level = Level.FINE
        return self._level
