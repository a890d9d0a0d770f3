"""What a source of readings is to the power reader, and what may go wrong with one.

The reader may run in another interpreter than the server's (a board's own Python has jetson-stats),
so this file and all that `daemon.power_reader` imports need the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

PROTOCOL = 2  # of the lines from the reader to the server; grows when their meaning changes

# Bounds of what a line may say; beyond them a sensor lies, or is off.
LEAST_CELSIUS, MOST_CELSIUS = -100, 300
MOST_WATTS = 2000
MOST_NAMES = 32  # of rails, and of temperatures
LONGEST_NAME = 64
NAME_CHARACTERS = r"\w.:/() -"

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


def without_odd(fields: Fields) -> Fields:
    """The same fields within a line's bounds: one odd sensor must not cost the whole line.

    What the board takes in stays as it is: where that is a lie, the line is to be refused.

    Args:
        fields: Of a reading; their names may hold any character.
    """
    fit = dict(fields)
    for key, least, most in (("rails", 0, MOST_WATTS), ("celsius", LEAST_CELSIUS, MOST_CELSIUS)):
        fit[key] = _named(fields.get(key, {}), least, most)
    if not 0 <= fit.get("gpu_ratio", 0) <= 1:
        del fit["gpu_ratio"]
    if "nvpmodel" in fit:
        fit["nvpmodel"] = _name(fit["nvpmodel"])
    return fit


def _named(values: Mapping[str, float], least: float, most: float) -> dict[str, float]:
    """The first that are within bounds; of two whose names become the same, the first."""
    kept: dict[str, float] = {}
    for name, value in values.items():
        if least <= value <= most and len(kept) < MOST_NAMES:
            kept.setdefault(_name(name), value)
    return kept


def _name(text: str) -> str:
    return re.sub(f"[^{NAME_CHARACTERS}]", "_", text)[:LONGEST_NAME] or "_"
