"""Samples become rows: which are new, which were there, which class they are; written many at once.

Whether a sample belongs to the hold-out is decided by a hash of its features: what scores a model
is never trained on, not even when the same reading is sent twice.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import Counter
from itertools import chain
from typing import NamedTuple

from daemon.errors import (
    IdConflictError,
    LabelConflictError,
    RequestError,
    TooManyClassesError,
    UnknownIdError,
)
from daemon.ingest.sample import OWN_ID_PREFIX, Sample
from daemon.store.counts import Kind, StoreCounts, counted, load_counts, write_counts
from daemon.store.row_check import row_crc
from daemon.store.schema import LIVE, SUPERSEDED, UNLABELLED, WITHDRAWN

_INSERT = """INSERT INTO samples (seq, id, class_index, holdout, dtype, source, ts, stored_at,
    retired, digest, crc, features) VALUES """
_ONE = f"({', '.join('?' * 12)})"
# Each statement gives the interpreter up and waits to have it back, from an event loop that is
# busy: so as few statements as may be.
_MANY_ROWS = 128
_MANY = ", ".join([_ONE] * _MANY_ROWS)
# As the index of ids has it.
CURRENT = f"retired IN ({LIVE}, {WITHDRAWN})"


class Stored(NamedTuple):
    """Where one sample went.

    Args:
        id: Its id, the client's or the store's.
        seq: Its place in the order of arrival.
        duplicate: It was there already, with equal content.
    """

    id: str
    seq: int
    duplicate: bool


Outcome = Stored | RequestError


class SampleRows:
    """The rows of the database as its writer sees them; every call is within a transaction.

    New rows are held back until the transaction's end, or until one of them may be asked for.

    Args:
        max_classes: Class places.
        holdout_ratio: Share of the samples that only score.
        drop_duplicates: A sample without an id is a duplicate of one with its features, label and
            source, stored since this was so.
    """

    def __init__(self, *, max_classes: int, holdout_ratio: float, drop_duplicates: bool) -> None:
        self._max_classes = max_classes
        self._holdout_ratio = holdout_ratio
        self._drop = drop_duplicates
        self._service_began: float | None = None
        self._counts = StoreCounts(0, 0, 0, {}, 0)
        self._classes: dict[str, int] = {}

    @property
    def counts(self) -> StoreCounts:
        """As of the last commit."""
        return self._counts

    @property
    def classes(self) -> dict[str, int]:
        """Class places by name."""
        return self._classes

    def load(self, connection: sqlite3.Connection) -> None:
        """See `daemon.store.writer.Contents`."""
        self._begin()
        rows = connection.execute("SELECT name, class_index FROM classes").fetchall()
        self._classes = dict(rows)
        self._counts = load_counts(connection)
        self._last_seq = self._counts.last_seq
        (self._written_seconds,) = connection.execute(
            "SELECT service_seconds FROM store_state"
        ).fetchone()
        if self._service_began is None:
            self._service_began = time.monotonic() - self._written_seconds

    def flush(self, connection: sqlite3.Connection) -> None:
        """See `daemon.store.writer.Contents`."""
        self._write_rows(connection)
        write_counts(connection, self._changes)
        seconds = self.service_seconds
        if self._last_seq != self._counts.last_seq or seconds != self._written_seconds:
            connection.execute(
                "UPDATE store_state SET last_seq = ?, service_seconds = ?",
                (self._last_seq, seconds),
            )
            self._written_seconds = seconds

    def committed(self) -> None:
        """See `daemon.store.writer.Contents`."""
        if self._changes:
            self._counts = counted(self._counts, self._changes, self._last_seq)
        self._begin()

    @property
    def service_seconds(self) -> int:
        """For how long the daemon has run, over all its starts: no jump of the clock ages a row."""
        return int(time.monotonic() - (self._service_began or 0.0))

    def insert(
        self, connection: sqlite3.Connection, samples: list[Sample], *, keyed: bool = False
    ) -> list[Outcome]:
        """Add samples; for each in order, where it went or why it was refused.

        Args:
            connection: In a transaction.
            samples: In order.
            keyed: Their request has a key: another one with equal content is meant to be another.
        """
        outcomes: list[Outcome] = []
        known = _known_ids(connection, [sample.id for sample in samples if sample.id is not None])
        for sample in samples:
            try:
                if (there := self._there(connection, sample, known, keyed)) is not None:
                    outcomes.append(there)
                else:
                    outcomes.append(self._insert_one(connection, sample))
            except RequestError as error:
                outcomes.append(error)
        return outcomes

    def class_index(self, connection: sqlite3.Connection, label: int | str) -> int:
        """The class place of a label; a new one takes the next.

        Raises:
            TooManyClassesError: None is left.
        """
        name = str(label)
        if name in self._classes:
            return self._classes[name]
        index = len(self._classes)
        if index >= self._max_classes:
            raise TooManyClassesError(
                f"this label would be class {index + 1}, the model has places for "
                f"{self._max_classes}: raise model.max_classes and restart, and learning begins "
                "again from the stored samples",
                field="label",
            )
        connection.execute("INSERT INTO classes VALUES (?, ?, ?)", (index, name, label != name))
        self._classes[name] = index
        return index

    def append(
        self,
        sample: Sample,
        sample_id: str | None,
        class_index: int | None,
        holdout: int,
        digest: int | None,
    ) -> int:
        """One row more, held back; its `seq`.

        Args:
            sample: Gives features, source and time stamp.
            sample_id: None: it goes by its `seq`.
            class_index: None: it has no label.
            holdout: 1: it only ever scores.
            digest: What `content_digest` says.
        """
        if not self._rows:
            self._stored_at = self.service_seconds
        self._last_seq = seq = self._last_seq + 1
        dtype, source, ts, at = sample.dtype, sample.source, sample.ts, self._stored_at
        features = sample.features
        crc = row_crc(seq, sample_id, class_index, holdout, dtype, source, ts, at, digest, features)
        self._rows.append(
            (
                seq,
                sample_id,
                class_index,
                holdout,
                dtype,
                source,
                ts,
                at,
                LIVE,
                digest,
                crc,
                features,
            )
        )
        place = UNLABELLED if class_index is None else class_index
        self._changes[LIVE, place, source, holdout] += 1
        return seq

    def count(self, kind: Kind, change: int) -> None:
        """Rows of a kind that there are more or fewer of, other than by `append`."""
        self._changes[kind] += change

    def settle(self, connection: sqlite3.Connection) -> None:
        """Write what is held back: before rows are looked for that may be among it."""
        self._write_rows(connection)

    def content_digest(self, sample: Sample) -> int | None:
        """What finds a sample of equal content; None where nobody asks."""
        if not self._drop:
            return None
        head = f"{sample.dtype}\0{'' if sample.label is None else sample.label}\0{sample.source}\0"
        found = hashlib.blake2b(head.encode() + sample.features, digest_size=8).digest()
        return int.from_bytes(found, "little", signed=True)

    def _there(
        self, connection: sqlite3.Connection, sample: Sample, known: set[str], keyed: bool
    ) -> Stored | None:
        """Where the sample is already, if it is; `known`: ids of rows that were there before."""
        if sample.id is not None:
            if sample.id in self._new_ids:
                self.settle(connection)
            elif sample.id not in known:
                return None
            seq = _with_id(connection, sample)
            return None if seq is None else Stored(sample.id, seq, duplicate=True)
        if keyed or (digest := self.content_digest(sample)) is None:
            return None
        if digest in self._new_digests:
            self.settle(connection)
        return _with_digest(connection, sample, digest)

    def _insert_one(self, connection: sqlite3.Connection, sample: Sample) -> Stored:
        label, digest = sample.label, self.content_digest(sample)
        class_index = None if label is None else self.class_index(connection, label)
        holdout = int(in_holdout(sample, self._holdout_ratio))
        seq = self.append(sample, sample.id, class_index, holdout, digest)
        if sample.id is not None:
            self._new_ids.add(sample.id)
        if digest is not None:
            self._new_digests.add(digest)
        return Stored(sample.id or f"{OWN_ID_PREFIX}{seq}", seq, duplicate=False)

    def _write_rows(self, connection: sqlite3.Connection) -> None:
        rows = self._rows
        single = len(rows) - len(rows) % _MANY_ROWS
        for start in range(0, single, _MANY_ROWS):
            values = chain.from_iterable(rows[start : start + _MANY_ROWS])
            connection.execute(_INSERT + _MANY, tuple(values))
        connection.executemany(_INSERT + _ONE, rows[single:])
        self._rows.clear()

    def _begin(self) -> None:
        self._rows: list[tuple[object, ...]] = []
        self._changes: Counter[Kind] = Counter()
        self._new_ids: set[str] = set()
        self._new_digests: set[int] = set()


def _known_ids(connection: sqlite3.Connection, ids: list[str]) -> set[str]:
    """Which of these ids rows have, asked for all at once; each is then looked at by itself."""
    known: set[str] = set()
    for start in range(0, len(ids), _MANY_ROWS):
        asked = ids[start : start + _MANY_ROWS]
        places = ", ".join("?" * len(asked))
        query = f"SELECT id FROM samples WHERE id IN ({places}) AND {CURRENT}"  # noqa: S608
        known.update(found for (found,) in connection.execute(query, asked))
    return known


def _with_id(connection: sqlite3.Connection, sample: Sample) -> int | None:
    """Where the sample with this id and content is.

    A repeat of what was sent first is still one after the label was corrected. Not so a label for a
    prediction: what a person says of it now may be meant to correct the correction.
    """
    row = connection.execute(
        f"""SELECT retired, seq, features = ? AND dtype = ?, class_index FROM samples
            WHERE id = ? AND {CURRENT}""",  # noqa: S608 - our own numbers
        (sample.features, sample.dtype, sample.id),
    ).fetchone()
    if row is None:
        return None
    retired, seq, equal, class_index = row
    if retired == WITHDRAWN and sample.predicted:
        raise UnknownIdError(
            "the sample that this prediction became was withdrawn: its label is not taken again",
            field="inference_id",
        )
    if retired == WITHDRAWN:
        raise IdConflictError("the sample with this id was withdrawn: use another id", field="id")
    if equal and _had_label(connection, sample, class_index):
        return int(seq)
    if equal and sample.predicted:
        raise LabelConflictError(
            "the sample that this prediction became has another label: POST /samples/{id}/label "
            "corrects it",
            field="label",
        )
    raise IdConflictError("this id belongs to a sample with other content", field="id")


def _had_label(connection: sqlite3.Connection, sample: Sample, current: int | None) -> bool:
    """Whether the sample that is there has this label, or had it before a correction."""
    class_index = None
    if sample.label is not None:
        query = "SELECT class_index FROM classes WHERE name = ?"
        found = connection.execute(query, (str(sample.label),)).fetchone()
        if found is None:
            return False
        (class_index,) = found
    if class_index == current or sample.predicted:
        return class_index == current
    earlier = f"""SELECT 1 FROM samples WHERE id = ? AND retired = {SUPERSEDED}
        AND class_index IS ? LIMIT 1"""  # noqa: S608 - our own numbers
    return connection.execute(earlier, (sample.id, class_index)).fetchone() is not None


def _with_digest(connection: sqlite3.Connection, sample: Sample, digest: int) -> Stored | None:
    label = None if sample.label is None else str(sample.label)
    row = connection.execute(
        """SELECT ifnull(id, ? || seq), seq FROM samples LEFT JOIN classes USING (class_index)
            WHERE digest = ? AND retired = 0 AND features = ? AND dtype = ? AND source = ?
            AND name IS ?""",
        (OWN_ID_PREFIX, digest, sample.features, sample.dtype, sample.source, label),
    ).fetchone()
    return None if row is None else Stored(row[0], row[1], duplicate=True)


def in_holdout(sample: Sample, ratio: float) -> bool:
    """Whether a sample only ever scores: a fixed pseudo-random share of all contents."""
    content = sample.dtype.encode() + sample.features
    digest = hashlib.blake2s(content, digest_size=4).digest()
    return int.from_bytes(digest, "little") < ratio * 2**32
