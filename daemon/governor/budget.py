"""How much of something may be used an hour, over a window that slides."""

from __future__ import annotations

from collections import deque

HOUR_SECONDS = 3600.0
# So often the total is noted: an hour's window is at most this much longer.
_NOTE_SECONDS = 10.0
# It is spent until so much of it has left the window again: not a second on, a second off.
_FREE_AGAIN = 0.9


class Budget:
    """A total that only grows, and the most it may grow by in an hour.

    The window is of this process: a daemon that starts again begins with all of its budget.

    Args:
        most: An hour, in the total's unit; 0: without limit.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._notes: deque[tuple[float, float]] = deque()
        self._total = 0.0
        self._spent = False

    def used(self, total: float, now: float) -> float:
        """What was used in the last hour.

        Args:
            total: So far; less than before: it could not be read.
            now: Seconds on a clock that does not jump.
        """
        self._total = total = max(self._total, total)
        notes = self._notes
        if not notes or now - notes[-1][0] >= _NOTE_SECONDS:
            notes.append((now, total))
        while len(notes) > 1 and notes[1][0] <= now - HOUR_SECONDS:
            notes.popleft()
        return total - notes[0][1]

    def spent(self, used: float) -> bool:
        """Whether learning has to wait.

        Args:
            used: In the last hour.
        """
        if self.most > 0:
            self._spent = used >= self.most * (_FREE_AGAIN if self._spent else 1.0)
        return self._spent
