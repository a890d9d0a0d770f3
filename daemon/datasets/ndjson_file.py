"""NDJSON: one object a line, as `POST /samples` takes it and `ffedge export` writes it.

{"x": [0, 12, 255], "label": 3, "id": "cam0-17", "source": "cam0", "ts": 1700000000.5}
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from daemon.datasets.rows import LARGEST_LABEL, BadRow, Dataset, Row
from daemon.errors import DataError

_KEY_BYTES = 16
_LINE_LIMIT = 16 << 20
# Such an id was made up by the exporting store; any store refuses it (docs/api.md). In its place
# the line itself makes the id, wherever it stands.
_STORE_ID = "s-"


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    x: list[Any]
    label: Annotated[int, msgspec.Meta(ge=-LARGEST_LABEL, le=LARGEST_LABEL)] | str | None = None
    id: str | None = None
    source: str | None = None
    ts: int | float | str | None = None
    # The exporting store's.
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**62)] | None = None
    dtype: str | None = None


class NdjsonFile(Dataset):
    """The lines of an NDJSON file.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read, or holds no line.
    """

    form: ClassVar[str] = "NDJSON"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if next(self.rows(), None) is None:
            raise DataError(f"{path}: found no line; wanted one JSON object a line")

    @property
    def count(self) -> None:
        """Lines are counted by reading them."""
        return None

    @property
    def shape(self) -> None:
        """Each line has its own."""
        return None

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; `x` is float32, nested as it was."""
        decoder = msgspec.json.Decoder(_Line)
        row = 0
        for number, text in enumerate(self._lines(), start=1):
            if not text.strip():
                continue
            row += 1
            if row > start:
                yield _row(f"line {number}", text, decoder)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as stream:
                if stream.read(len(BOM_UTF8)) != BOM_UTF8:
                    stream.seek(0)
                while line := stream.readline(_LINE_LIMIT):
                    if len(line) == _LINE_LIMIT:
                        raise DataError(f"{self.path}: a line exceeds {_LINE_LIMIT} bytes")
                    yield line
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


def _row(name: str, text: bytes, decoder: msgspec.json.Decoder[_Line]) -> Row | BadRow:
    try:
        line = decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BadRow(name, f"is no sample: {error}")
    try:
        numbers = np.array(line.x)
    except ValueError:
        return BadRow(name, "field 'x' is ragged")
    if numbers.dtype.kind not in "iuf":
        return BadRow(name, "field 'x' is not a list of numbers")
    with np.errstate(over="ignore"):
        x = numbers.astype(np.float32)
    if line.id is None or not line.id.startswith(_STORE_ID):
        return Row(name, x, line.label, line.id, line.source, line.ts)
    key = hashlib.blake2b(text.strip(), digest_size=_KEY_BYTES).digest()
    stored = None if line.seq is None else (line.id, line.seq)
    return Row(name, x, line.label, None, line.source, line.ts, key, stored)
