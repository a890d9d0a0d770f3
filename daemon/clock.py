"""Wall-clock time as it is written down; anything timed uses the monotonic clock instead."""

from __future__ import annotations

import datetime


def stamp(seconds: float | None = None) -> str:
    """A moment in UTC, RFC 3339 with milliseconds.

    Args:
        seconds: Since the epoch; None: now.
    """
    zone = datetime.timezone.utc
    if seconds is None:
        moment = datetime.datetime.now(zone)
    else:
        moment = datetime.datetime.fromtimestamp(seconds, zone)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
