"""What every layout gives: rows in a fixed order, from any row on, and bad ones by name."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

# As the daemon takes them.
LARGEST_LABEL = 2**62
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Row:
    """One sample of a data set.

    Args:
        name: Where it stands, for messages: `dog/1.png`, `line 17`.
        x: uint8 or float32 of any shape.
        label: None: it has none.
        id: The sample's own id, where the layout keeps one.
        source: Where it came from, likewise.
        ts: Its time stamp, likewise.
        key: Digest of what makes it itself, where that is not its place among the rows.
        stored: Id and number that an exporting store gave it itself.
    """

    name: str
    x: NDArray[Any]
    label: int | str | None
    id: str | None = None
    source: str | None = None
    ts: int | float | str | None = None
    key: bytes | None = None
    stored: tuple[str, int] | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used; those after it can.

    Args:
        name: As in `Row`.
        why: What was found and what was wanted.
    """

    name: str
    why: str


class Dataset(ABC):
    """A data set on disk.

    Args:
        path: As it was named.
    """

    form: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Rows, bad ones included; None: not known before all are read."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """Shape of every row's `x`; None: not known before it is read."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """What it is read from."""

    @property
    def notes(self) -> list[str]:
        """How it was understood, a line each: what a user should see before it is sent."""
        return []

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """Every row from number `start` on, the same ones in the same order each time.

        Raises:
            DataError: The rest cannot be read.
        """


def label_of(text: str) -> int | str | None:
    """The label that a text stands for: `"3"` is the integer 3, nothing at all is no label."""
    text = text.strip()
    return int(text) if _INTEGER.fullmatch(text) else text or None
