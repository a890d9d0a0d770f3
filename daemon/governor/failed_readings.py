"""What is logged of a machine that cannot be read: the change, not each second of it."""

from __future__ import annotations

import logging
import math

log = logging.getLogger(__name__)

_REPEAT_SECONDS = 600.0
# Reading that fails now and then is one failure, not a new one each time.
_RECOVERED_SECONDS = 60.0


class FailedReadings:
    """Logs the first failure, a count every ten minutes, and the end of it."""

    def __init__(self) -> None:
        self._periods = 0
        self._told_at = -math.inf
        self._failed_at = -math.inf

    def failed(self, error: Exception, now: float) -> None:
        """A period without readings.

        Args:
            error: Why.
            now: Seconds on a clock that does not jump.
        """
        self._periods += 1
        self._failed_at = now
        if self._periods == 1 or now - self._told_at >= _REPEAT_SECONDS:
            self._told_at = now
            extra = {"periods": self._periods}
            log.error("the governor cannot read this machine", exc_info=error, extra=extra)

    def read(self, now: float) -> None:
        """A period with readings; a minute after the last one without, it is over.

        Args:
            now: As above.
        """
        if self._periods and now - self._failed_at >= _RECOVERED_SECONDS:
            extra = {"periods": self._periods}
            log.info("the governor reads this machine again", extra=extra)
            self._periods = 0
