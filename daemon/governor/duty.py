"""The duty: the share of the time that the learner may work. Arithmetic alone, no clock.

A period over a limit halves it, the next one in a row pauses; near a limit it is held; five fine
periods in a row add a tenth. By that alone a slow plant, such as a heat sink, would swing for ever:
when it is hot at last, the duty has long been too high. So three quarters of the duty that went
over are remembered as a ceiling. The ceiling rises by a tenth when it was borne for a while; each
time that proves wrong the while is twice as long. So the number of cuts grows with the logarithm of
time, until the while is at its longest: ten at most to find the bearable duty, six more in an hour.
After the same while without a period over, `near` or not, a pause ends with the least duty: what
nears the limit may be what the paused learner holds, its memory, and then it is never fine again.
"""

from __future__ import annotations

from daemon.governor.rules import Level

STEP = 0.1
LEAST_DUTY = 0.05  # below it a learner takes a step now and then, and holds its memory for nothing
FINE_PERIODS = 5
CEILING_SHARE = 0.75  # of the duty that went over
FIRST_PROBE_SECONDS = 30.0
LAST_PROBE_SECONDS = 1920.0


class DutyControl:
    """Levels in, duty out, one period after the other.

    Args:
        most: Never above it.
    """

    def __init__(self, most: float) -> None:
        self.duty = most
        self._most = self._ceiling = most
        self._over_periods = self._fine_periods = 0
        self._probe_seconds = FIRST_PROBE_SECONDS
        self._borne_seconds = 0.0  # at the ceiling, with all fine
        self._kept_seconds = 0.0  # paused, with nothing over
        self._last: float | None = None

    def period(
        self, level: Level, now: float, *, working: bool, cap: float, blind: bool = False
    ) -> float:
        """One control period.

        Args:
            level: The worst of all rules.
            now: Seconds on a clock that does not jump.
            working: Whether the learner was at a job: else fine readings prove nothing.
            cap: The most duty that may be had now, whatever the level.
            blind: Whether a reading is missing, so that nothing is known to be kept.

        Returns:
            The duty from now on, 0 to 1.
        """
        elapsed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        self.duty = min(self.duty, cap)
        if level is Level.OVER:
            self._over()
        else:
            self._over_periods = 0
            self._fine_periods = self._fine_periods + 1 if level is Level.FINE else 0
            if level is Level.FINE:
                self._fine(elapsed, working, cap)
        self._end_pause(elapsed, cap, kept=level is not Level.OVER and not blind)
        return self.duty

    def _over(self) -> None:
        self._over_periods += 1
        self._fine_periods = 0
        self._borne_seconds = 0.0
        if self._over_periods > 1:
            self.duty = 0.0
        elif self.duty > 0:  # else it is not by our doing
            self._ceiling = min(self._ceiling, _worth(CEILING_SHARE * self.duty))
            self._probe_seconds = min(2 * self._probe_seconds, LAST_PROBE_SECONDS)
            self.duty = _worth(self.duty / 2)

    def _fine(self, elapsed: float, working: bool, cap: float) -> None:
        if self.duty >= self._ceiling and (working or self.duty == 0):
            self._borne_seconds += elapsed
        if self._borne_seconds >= self._probe_seconds:
            self._borne_seconds = 0.0
            if self._ceiling >= self._most:
                self._probe_seconds = FIRST_PROBE_SECONDS
            self._ceiling = min(self._ceiling + STEP, self._most)
        if self._fine_periods >= FINE_PERIODS:
            self._fine_periods = 0
            higher = min(self.duty + STEP, self._ceiling, cap, self._most)
            self.duty = max(self.duty, higher)

    def _end_pause(self, elapsed: float, cap: float, *, kept: bool) -> None:
        self._kept_seconds = self._kept_seconds + elapsed if kept and self.duty == 0 else 0.0
        if self._kept_seconds >= self._probe_seconds:
            self.duty = _worth(min(LEAST_DUTY, cap, self._most))


def _worth(duty: float) -> float:
    return duty if duty >= LEAST_DUTY else 0.0
