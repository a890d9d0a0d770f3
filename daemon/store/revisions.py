"""What is said of a sample later: its label, a correction of it, or that it is not to count.

A label is a new row, at the end of the order, so that whoever reads in order meets it; the row of
before is retired, and its features, which the new one has, are emptied. A withdrawal empties those.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from daemon.errors import LabelConflictError, UnknownIdError
from daemon.ingest.sample import OWN_ID_PREFIX, Sample
from daemon.store.counts import Kind
from daemon.store.row_check import CHECKED, is_page_damage, is_sound, row_crc
from daemon.store.sample_rows import SampleRows
from daemon.store.schema import DAMAGED, LIVE, SUPERSEDED, UNLABELLED, WITHDRAWN

Label = int | str


class Labelled(NamedTuple):
    """A sample and its label.

    Args:
        id: Its id.
        label: What it is now.
        previous_label: What it was before this; None: nothing.
        seq: Its place in the order of arrival.
    """

    id: str
    label: Label
    previous_label: Label | None
    seq: int


class Withdrawn(NamedTuple):
    """A sample that no longer counts.

    Args:
        id: Its id.
        seq: Its last place in the order of arrival.
    """

    id: str
    seq: int


class _Row(NamedTuple):
    retired: int
    seq: int
    id: str | None
    class_index: int | None
    holdout: int
    dtype: str
    source: str
    ts: str | None
    stored_at: int
    digest: int | None
    features: bytes
    crc: int

    def kind(self, retired: int) -> Kind:
        place = UNLABELLED if self.class_index is None else self.class_index
        return retired, place, self.source, self.holdout


def label_sample(
    connection: sqlite3.Connection, rows: SampleRows, sample_id: str, label: Label, *, replace: bool
) -> Labelled:
    """Label a sample, or correct its label; with the label that it has, nothing changes.

    Raises:
        UnknownIdError: No sample that counts has this id, or it is damaged.
        LabelConflictError: It has another label, and that was not to be replaced.
        TooManyClassesError: No class place is left.
    """
    row = _find(connection, rows, sample_id)
    if row.retired == WITHDRAWN:
        raise UnknownIdError("the sample with this id was withdrawn")
    if not is_sound(row[1:]):
        # A copy of it would have a good check and be learned.
        raise UnknownIdError("the sample with this id is damaged on disk: send it again")
    previous = _label(connection, row.class_index)
    if previous is not None and str(previous) == str(label):
        return Labelled(sample_id, previous, previous, row.seq)
    if previous is not None and not replace:
        raise LabelConflictError(
            'this sample has another label: send "replace": true to correct it', field="label"
        )
    class_index = rows.class_index(connection, label)
    _retire(connection, rows, row, SUPERSEDED)
    _empty(connection, row)
    sample = Sample(row.features, row.dtype, label, sample_id, row.source, row.ts)
    digest = rows.content_digest(sample)
    seq = rows.append(sample, sample_id, class_index, row.holdout, digest)
    rows.settle(connection)
    named = _label(connection, class_index)
    assert named is not None  # noqa: S101 - it was made above
    return Labelled(sample_id, named, previous, seq)


def withdraw_sample(connection: sqlite3.Connection, rows: SampleRows, sample_id: str) -> Withdrawn:
    """Take a sample out of all that counts, and its features out of the database.

    Raises:
        UnknownIdError: No sample has this id.
    """
    row = _find(connection, rows, sample_id)
    if row.retired == WITHDRAWN:
        return Withdrawn(sample_id, row.seq)
    _retire(connection, rows, row, WITHDRAWN)
    _empty(connection, row)
    return Withdrawn(sample_id, row.seq)


def retire_damaged(connection: sqlite3.Connection, rows: SampleRows, seqs: list[int]) -> None:
    """Retire rows that their check has refused; what they hold is not touched.

    A bit that flipped in what an index is made of leaves the index without the row: it is made
    anew then.
    """
    rows.settle(connection)
    for seq in seqs:
        for row in _rows(connection, f"seq = ? AND retired = {LIVE}", seq):
            try:
                _retire(connection, rows, row, DAMAGED)
            except sqlite3.DatabaseError as error:
                if not is_page_damage(error):
                    raise
                connection.execute("REINDEX samples")
                _retire(connection, rows, row, DAMAGED)


def _find(connection: sqlite3.Connection, rows: SampleRows, sample_id: str) -> _Row:
    rows.settle(connection)
    current = f"retired IN ({LIVE}, {WITHDRAWN})"
    found = _rows(connection, f"id = ? AND {current}", sample_id)
    first = own_seq(sample_id)
    if not found and first is not None:
        found = _rows(connection, f"seq = ? AND id IS NULL AND {current}", first)
    if not found:
        raise UnknownIdError("no sample has this id; GET /samples lists them")
    return found[0]


def own_seq(sample_id: str) -> int | None:
    """Where the store put the sample that it named itself."""
    number = sample_id.removeprefix(OWN_ID_PREFIX)
    # 18 digits are below the largest seq; no other text than the one given out names a sample.
    if number == sample_id or not (number.isascii() and number.isdigit()) or len(number) > 18:
        return None
    return int(number) if str(int(number)) == number else None


def _rows(connection: sqlite3.Connection, where: str, value: str | int) -> list[_Row]:
    query = f"SELECT retired, {CHECKED}, crc FROM samples WHERE {where}"  # noqa: S608 - our own text
    return [_Row(*row) for row in connection.execute(query, (value,))]


def _label(connection: sqlite3.Connection, class_index: int | None) -> Label | None:
    row = connection.execute(
        "SELECT name, is_integer FROM classes WHERE class_index = ?", (class_index,)
    ).fetchone()
    if row is None:
        return None
    name, is_integer = row
    return int(name) if is_integer else str(name)


def _retire(connection: sqlite3.Connection, rows: SampleRows, row: _Row, why: int) -> None:
    connection.execute("UPDATE samples SET retired = ? WHERE seq = ?", (why, row.seq))
    rows.count(row.kind(row.retired), -1)
    rows.count(row.kind(why), 1)


def _empty(connection: sqlite3.Connection, row: _Row) -> None:
    columns: tuple[Any, ...] = row._replace(features=b"")
    crc = row_crc(*columns[1:-1])
    connection.execute("UPDATE samples SET features = x'', crc = ? WHERE seq = ?", (crc, row.seq))
