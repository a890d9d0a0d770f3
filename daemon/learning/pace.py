"""How fast the learner goes: between two steps it sleeps, or holds, as the governor says.

Of each stretch of work and sleep the duty is the share of work. A step is never cut: one that takes
longer than a second is slept for as long as it asks. What is learned depends on none of this.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from daemon.messages import Pace

# The kernel's own range is -1000 to 1000; the service's is in deploy/ffedge.service.
LEARNER_OOM_SCORE = 500
_ALIVE_SECONDS = 0.5  # between two signs of life while it sleeps
# Shorter sleeps are put together: the kernel's timers cost more than they give.
_SHORTEST_SLEEP_SECONDS = 0.002
# A longer stretch was a machine that was suspended, or a compiler; it is not slept for.
_LONGEST_WORK_SECONDS = 60.0


def lower_priority(niceness: int) -> None:
    """Give way to the server: less CPU time, and killed first when memory runs out."""
    os.nice(niceness)
    with contextlib.suppress(OSError):  # not Linux, or not permitted: only the order is lost
        Path("/proc/self/oom_score_adj").write_text(str(LEARNER_OOM_SCORE))


class Pacer:
    """Sleeps for the learner. Told by one thread, asked by another.

    Args:
        say_alive: Called between and during sleeps.
        clock: Seconds, monotonic.
        told: What it sleeps on, and is woken by.
    """

    def __init__(
        self,
        say_alive: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        told: threading.Condition | None = None,
    ) -> None:
        self.worked_seconds = 0.0
        self._say_alive = say_alive
        self._clock = clock
        self._told = told or threading.Condition()
        self._pace = Pace(1.0, None)
        self._released = False
        self._owed_seconds = 0.0  # of sleep
        self._owed_duty = 1.0  # for which that is owed
        self._since = clock()

    @property
    def paused(self) -> str | None:
        """Why nothing may be learned now."""
        pace = self._pace
        return None if self._released or pace.duty > 0 else pace.paused or "paused"

    def follow(self, pace: Pace) -> None:
        """The server's word, obeyed at once by who sleeps, and until the next."""
        with self._told:
            self._pace = pace
            self._told.notify_all()

    def release(self) -> None:
        """The server is gone: nobody sleeps any more, since the process is to end."""
        with self._told:
            self._released = True
            self._told.notify_all()

    def begin(self) -> None:
        """A stretch of work begins: what came before was no work."""
        self._since = self._clock()

    def between_steps(self) -> None:
        """To be called after each step: sleep off what it took, hold while paused."""
        now = self._clock()
        worked = min(max(0.0, now - self._since), _LONGEST_WORK_SECONDS)
        self.worked_seconds += worked
        self._say_alive()
        with self._told:
            pace = self._pace
        self._rescale(pace.duty)
        self._owed_seconds += worked * (1 / self._owed_duty - 1)
        if pace.duty <= 0 or self._owed_seconds >= _SHORTEST_SLEEP_SECONDS:
            self._sleep(pace)
        self._since = self._clock()

    def _sleep(self, pace: Pace) -> None:
        """Until nothing is owed, at the pace that holds by then."""
        at = self._clock()
        while not self._released:
            with self._told:
                if self._pace != pace:
                    pace = self._pace
                    self._rescale(pace.duty)
                if pace.duty > 0 and self._owed_seconds <= 0:
                    return
                left = self._owed_seconds if pace.duty > 0 else _ALIVE_SECONDS
                self._told.wait(min(left, _ALIVE_SECONDS))
            now = self._clock()
            # What is slept too long counts for the next step; a machine's own sleep does not, nor
            # what a pause lasts beyond what was owed.
            least = -_ALIVE_SECONDS if pace.duty > 0 else min(self._owed_seconds, 0.0)
            self._owed_seconds = max(self._owed_seconds - (now - at), least)
            at = now
            self._say_alive()

    def _rescale(self, duty: float) -> None:
        """The work that is not slept for yet is slept for as another duty asks; a pause asks none.

        Were it forgiven, a duty that changes faster than a step is slept for would not be kept.
        """
        if duty <= 0 or duty == self._owed_duty:
            return
        if self._owed_seconds > 0:
            self._owed_seconds *= (1 / duty - 1) / (1 / self._owed_duty - 1)
        self._owed_duty = duty
