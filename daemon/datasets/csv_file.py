"""CSV: one sample a line, the label in one of its columns.

The label is in the column named `label`, `class`, `target` or `y` in the header where exactly one
is, else in the last, unless told otherwise. A first line in which no feature is a number is the
header. Columns are parted by comma, semicolon or tab, whichever the first line has most of.

Each line stands for itself, so that a quote that is never closed costs its own line and swallows no
other; a cell cannot hold a line end, and in numbers none does.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from daemon.datasets.rows import BadRow, Dataset, Row, label_of
from daemon.errors import DataError

_LINE_LIMIT = 16 << 20
_SEPARATORS = ",;\t"
_LABEL_NAMES = ("label", "class", "target", "y")
_LOOKED_AT = 1000
_WHOLE = re.compile(r"(-?[0-9]+)(?:\.0*)?")


class CsvFile(Dataset):
    """The lines of a CSV file.

    Args:
        path: The file, UTF-8.
        label_column: The label's column: its number from 1, or its name in the header; None: found
            as the module says.

    Raises:
        DataError: It cannot be read, holds no row, or has no such column.
    """

    form: ClassVar[str] = "CSV"

    def __init__(self, path: Path, label_column: str | None = None) -> None:
        super().__init__(path)
        self._separator = ","
        first = next((line for _, line in self._lines()), "")
        self._separator = max(_SEPARATORS, key=first.count)
        self._first, cells = next(self._cells(), (0, []))
        if isinstance(cells, str):
            raise DataError(f"{path}: line {self._first} {cells}")
        if len(cells) < 2:
            raise DataError(
                f"{path}: the first line has {len(cells)} columns; wanted numbers and a label, "
                "parted by commas"
            )
        names = [cell.strip() for cell in cells]
        self._label = self._column(names, label_column)
        features = names[: self._label] + names[self._label + 1 :]
        # A label may be a word in any line; features are words, all of them, in the header alone.
        self._has_header = not any(map(_is_number, features))
        self._label_name = names[self._label] if self._has_header else ""
        self._columns = len(cells)
        self._decimal_labels = False
        if next(self.rows(), None) is None:
            raise DataError(f"{path}: found no row but the header; wanted one line a sample")
        self._decimal_labels = self._labels_are_whole()

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

    @property
    def notes(self) -> list[str]:
        """Where the label is, and whether there is a header."""
        name = f", {self._label_name!r}" if self._label_name else ""
        header = f"line {self._first} read as header" if self._has_header else "no header"
        return [f"the label is column {self._label + 1} of {self._columns}{name}; {header}"]

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; `x` is float32 `[features]`."""
        for line, cells in islice(self._cells(), start + self._has_header, None):
            name = f"line {line}"
            if isinstance(cells, str):
                yield BadRow(name, cells)
                continue
            if len(cells) != self._columns:
                yield BadRow(name, f"has {len(cells)} columns, the first line {self._columns}")
                continue
            label = self._label_of(cells.pop(self._label))
            try:
                numbers = [*map(_number, cells)]
            except ValueError:
                yield BadRow(name, "holds a cell that is not a number")
                continue
            with np.errstate(over="ignore"):
                yield Row(name, np.array(numbers, dtype=np.float32), label)

    def _column(self, names: list[str], wanted: str | None) -> int:
        if wanted is None:
            usual = [n for n, name in enumerate(names) if name.lower() in _LABEL_NAMES]
            return usual[0] if len(usual) == 1 else len(names) - 1
        if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
        if wanted in names:
            return names.index(wanted)
        raise DataError(
            f"{self.path}: found {len(names)} columns, none that --label-column means; wanted the "
            f"name of one in the first line, or a number from 1 to {len(names)}"
        )

    def _labels_are_whole(self) -> bool:
        """Whether the first labels are whole numbers, be it `3.0`, as pandas has it beside gaps."""
        labels = (row.label for row in islice(self.rows(), _LOOKED_AT) if isinstance(row, Row))
        return all(label is None or _WHOLE.fullmatch(str(label)) for label in labels)

    def _label_of(self, text: str) -> int | str | None:
        whole = _WHOLE.fullmatch(text.strip()) if self._decimal_labels and "." in text else None
        return label_of(whole[1] if whole else text)

    def _cells(self) -> Iterator[tuple[int, list[str] | str]]:
        """Number and cells of each line that is not empty; a text: why it has none."""
        for number, line in self._lines():
            try:
                cells = next(csv.reader((line,), delimiter=self._separator, strict=True), [])
            except csv.Error as error:
                ends = "unexpected end of data" in str(error)
                yield number, "is no CSV: unclosed quote?" if ends else f"is no CSV: {error}"
            else:
                if cells:
                    yield number, cells

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                number = 0
                while line := stream.readline(_LINE_LIMIT):
                    number += 1
                    if len(line) == _LINE_LIMIT:
                        raise DataError(f"{self.path}: a line exceeds {_LINE_LIMIT} characters")
                    yield number, line
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: is no text in UTF-8; save it as such") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


def _number(text: str) -> float:
    if "_" in text:  # Python's own way to part digits
        raise ValueError
    return float(text)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True
