"""CSV: one sample a line, the label in one of its columns (the last, unless told otherwise).

A first line that is no sample is the header. Columns are parted by comma, semicolon or tab,
whichever the first line has most of.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from daemon.datasets.rows import BadRow, Dataset, Row, label_of
from daemon.errors import DataError

_LINE_LIMIT = 16 << 20
_SEPARATORS = ",;\t"


class CsvFile(Dataset):
    """The lines of a CSV file.

    Args:
        path: The file, UTF-8.
        label_column: The label's column: its number from 1, or its name in the header; None: last.

    Raises:
        DataError: It cannot be read, holds no line, or has no such column.
    """

    form: ClassVar[str] = "CSV"

    def __init__(self, path: Path, label_column: str | None = None) -> None:
        super().__init__(path)
        self._separator = ","
        first = next(self._lines(), "")
        self._separator = max(_SEPARATORS, key=first.count)
        cells = next(self._cells(), (0, []))[1]
        if len(cells) < 2:
            raise DataError(
                f"{path}: the first line has {len(cells)} columns; wanted numbers and a label, "
                "parted by commas"
            )
        names = [cell.strip() for cell in cells]
        self._label = self._column(names, label_column)
        features = names[: self._label] + names[self._label + 1 :]
        # A label may be a word in any line; a feature is a word in the header alone.
        self._has_header = not all(map(_is_number, features))
        self._columns = len(cells)

    @property
    def count(self) -> None:
        """Lines are counted by reading them."""
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Every column but the label's: `[features]`."""
        return (self._columns - 1,)

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; `x` is float32 `[features]`."""
        skipped = start + self._has_header
        for number, (line, cells) in enumerate(self._cells()):
            if number < skipped:
                continue
            name = f"line {line}"
            if len(cells) != self._columns:
                yield BadRow(name, f"has {len(cells)} columns, the first line {self._columns}")
                continue
            label = label_of(cells.pop(self._label))
            try:
                with np.errstate(over="ignore"):
                    x = np.array([float(cell) for cell in cells], dtype=np.float32)
            except ValueError:
                yield BadRow(name, "holds a cell that is not a number")
            else:
                yield Row(name, x, label)

    def _column(self, names: list[str], wanted: str | None) -> int:
        if wanted is None:
            return len(names) - 1
        if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
        if wanted in names:
            return names.index(wanted)
        raise DataError(
            f"{self.path}: found {len(names)} columns, none that --label-column means; wanted the "
            f"name of one in the first line, or a number from 1 to {len(names)}"
        )

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Number and cells of each line that is not empty."""
        reader = csv.reader(self._lines(), delimiter=self._separator)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{self.path}: line {reader.line_num} is no CSV: {error}") from error

    def _lines(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                while line := stream.readline(_LINE_LIMIT):
                    if len(line) == _LINE_LIMIT:
                        raise DataError(f"{self.path}: a line exceeds {_LINE_LIMIT} characters")
                    yield line
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: is no text in UTF-8; save it as such") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
