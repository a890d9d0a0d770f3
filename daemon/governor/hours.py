"""The hours of the day in which the learner may work, in local time."""

from __future__ import annotations

import datetime


class Hours:
    """A span of every day, such as `22:00-06:00`, which crosses midnight.

    It is asked anew each period from the local time of day alone, so a clock that is set, or a
    change to summer time, makes a span longer or shorter on that day and confuses nothing.

    Args:
        text: `HH:MM-HH:MM`, the start within, the end without; empty: always.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        start, _, end = text.partition("-")
        self._span = (_minute(start), _minute(end)) if text else None

    def contain(self, moment: datetime.datetime) -> bool:
        """Whether the learner may work.

        Args:
            moment: In local time.
        """
        if self._span is None:
            return True
        start, end = self._span
        minute = 60 * moment.hour + moment.minute
        if start < end:
            return start <= minute < end
        return minute >= start or minute < end


def _minute(text: str) -> int:
    hour, minute = map(int, text.split(":"))
    return 60 * hour + minute
