"""Batches: the rows of a data set as bodies of `POST /samples`, each row with an id of its own.

A row's id is its number and a digest of all rows up to it. So a row that the daemon has is known to
it, in whatever run it came and for as long as its sample is kept; a file that has grown brings only
what is new; two equal rows are two samples; and no file need be read twice. A picture of a folder
has an id of its path and content instead: a new one may stand before any other. An
`Idempotency-Key` a batch would save the some 60 bytes that an id costs, but the daemon remembers
the newest keys only, and an import that goes on tomorrow must not depend on how many requests came
in between.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from daemon.datasets import BadRow, Dataset, Row
from daemon.errors import DataError
from daemon.transfer.bodies import request_of
from daemon.transfer.fitting import Fit

# The daemon takes no more in one request of binary tensors.
_MOST_ROWS = 256
# A body is at most 8 MiB, and a float32 in decimal at most 24 characters with its comma.
_BODY_BYTES = 8 << 20
_NUMBER_BYTES = 24
_FIELDS_BYTES = 512
_CHAIN_BYTES = 16
_ID_BYTES = 9


@dataclass(frozen=True)
class Place:
    """A place between two rows.

    Args:
        row: Number of the row after it.
        chain: Digest of all rows before it.
    """

    row: int = 0
    chain: bytes = bytes(_CHAIN_BYTES)


@dataclass(frozen=True)
class Batch:
    """Rows that are sent in one request.

    Args:
        start: Before its first row.
        stop: Behind its last.
        names: Of the rows that are sent, in order.
        ids: Of the same rows.
        unlabelled: How many of them have no label.
        held: How many are not sent since the daemon has them under an id of its own.
        bad: Rows that are not.
        body: The request's; empty where no row is sent.
        headers: The request's.
    """

    start: Place
    stop: Place
    names: list[str]
    ids: list[str]
    unlabelled: int
    held: int
    bad: list[BadRow]
    body: bytes
    headers: dict[str, str]


class Batches:
    """The batches of a data set for one model.

    Args:
        dataset: Read once for each call of `after`.
        fit: Gives a row the model's shape.
        input_shape: The model's.
        source: Of rows that name none themselves.
        held: Whether the daemon has a row already, under an id of its own.
    """

    def __init__(
        self,
        dataset: Dataset,
        fit: Fit,
        input_shape: tuple[int, ...],
        source: str,
        held: Callable[[Row], bool] = lambda row: False,
    ) -> None:
        self._dataset, self._fit, self._source, self._held = dataset, fit, source, held
        row_bytes = _NUMBER_BYTES * math.prod(input_shape) + _FIELDS_BYTES
        self._rows = max(1, min(_MOST_ROWS, _BODY_BYTES // row_bytes))

    def after(self, place: Place) -> Iterator[Batch]:
        """Every batch behind a place.

        Raises:
            DataError: The rest of the data set cannot be read.
        """
        rows: list[Row | BadRow] = []
        for row in self._dataset.rows(place.row):
            rows.append(self._fitted(row))
            if len(rows) == self._rows:
                yield (batch := self._batch(place, rows))
                place, rows = batch.stop, []
        if rows:
            yield self._batch(place, rows)

    def _fitted(self, row: Row | BadRow) -> Row | BadRow:
        if isinstance(row, BadRow):
            return row
        try:
            x = self._fit(row.x)
        except DataError as error:
            return BadRow(row.name, str(error))
        if not np.isfinite(x).all():
            return BadRow(row.name, "holds a number that is none, or that float32 does not hold")
        source = self._source if row.source is None else row.source
        return dataclasses.replace(row, x=x, source=source)

    def _batch(self, start: Place, rows: list[Row | BadRow]) -> Batch:
        chain = start.chain
        sent: list[Row] = []
        ids: list[str] = []
        held = 0
        for number, row in enumerate(rows, start.row):
            chain = _chained(chain, row)
            if isinstance(row, Row) and self._held(row):
                held += 1
            elif isinstance(row, Row):
                sent.append(row)
                ids.append(row.id or _id(number, chain, row))
        body, headers = request_of(sent, ids) if sent else (b"", {})
        return Batch(
            start,
            Place(start.row + len(rows), chain),
            [row.name for row in sent],
            ids,
            sum(row.label is None for row in sent),
            held,
            [row for row in rows if isinstance(row, BadRow)],
            body,
            headers,
        )


def _chained(chain: bytes, row: Row | BadRow) -> bytes:
    digest = hashlib.blake2b(chain, digest_size=_CHAIN_BYTES)
    if isinstance(row, Row):
        digest.update(msgspec.msgpack.encode((row.x.dtype.str, row.label, row.source, row.ts)))
        digest.update(row.x.tobytes())
    return digest.digest()


def _id(number: int, chain: bytes, row: Row) -> str:
    if row.key is None:
        return f"import-{number}-{_text(chain)}"
    # Another source makes another sample of it, as with any other row.
    source = (row.source or "").encode()
    return f"import-{_text(hashlib.blake2b(row.key + source, digest_size=_CHAIN_BYTES).digest())}"


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[:_ID_BYTES]).decode()
