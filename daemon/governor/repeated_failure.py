"""What is logged of something that is done each second and fails: the change, not each second."""

from __future__ import annotations

import logging
import math

log = logging.getLogger(__name__)

_REPEAT_SECONDS = 600.0
# What fails now and then is one failure, not a new one each time.
_RECOVERED_SECONDS = 60.0


class RepeatedFailure:
    """Logs the first failure, a count every ten minutes, and the end of it.

    Args:
        what: The governor cannot do it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._periods = 0
        self._told_at = -math.inf
        self._failed_at = -math.inf

    def failed(self, error: Exception, now: float) -> None:
        """A period in which it failed.

        Args:
            error: Why.
            now: Seconds on a clock that does not jump.
        """
        self._periods += 1
        self._failed_at = now
        if self._periods == 1 or now - self._told_at >= _REPEAT_SECONDS:
            self._told_at = now
            extra = {"periods": self._periods}
            log.error("the governor cannot %s", self._what, exc_info=error, extra=extra)

    def over(self, now: float) -> None:
        """A period in which it did not; a minute after the last one in which it did, it is over.

        Args:
            now: As above.
        """
        if self._periods and now - self._failed_at >= _RECOVERED_SECONDS:
            extra = {"periods": self._periods}
            log.info("the governor can %s again", self._what, extra=extra)
            self._periods = 0
