"""What a source of readings is to the power reader, and what may go wrong with one.

The reader may run in another interpreter than the server's (a board's own Python has jetson-stats),
so this file and all that `daemon.power_reader` imports need the standard library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

PROTOCOL = 1  # of the lines from the reader to the server; grows when their meaning changes

# Fields of a reading, by the names that `daemon.power_reading` gives them; a missing one is absent.
Fields = dict[str, Any]


class ProviderError(Exception):
    """This source cannot give readings; the message says what was found and what was wanted."""


class Provider(Protocol):
    """A source of readings that is open."""

    name: str
    interval_seconds: float  # between two readings, as the source has it
    paced: bool  # whether `read` waits for the next reading by itself

    def read(self) -> Fields:
        """The next reading.

        Raises:
            ProviderError: There is none.
            OSError: The source is gone.
        """

    def close(self) -> None:
        """Let the source go; never raises."""


def read_text(path: Path) -> str | None:
    """A small file's text without its end, None where it cannot be read: a sensor may be off."""
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """A small file's number, None where there is none."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None
