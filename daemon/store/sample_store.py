"""Samples on disk: what may be asked of the store; each change is durable before it is told.

Only the store's thread writes to the database (`writer.py`); the learner reads through a
connection of its own (`sample_reader.py`). sqlite-utils owns the schema and its migrations; what
is written runs on its connection directly, because each of its own calls commits by itself.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from daemon.errors import KeyInUseError, StorageError, StoreUnavailableError
from daemon.ingest.sample import Sample
from daemon.store.acknowledgement import Acknowledgement
from daemon.store.availability import Unavailable
from daemon.store.connections import open_reader
from daemon.store.counts import StoreCounts
from daemon.store.database import Database
from daemon.store.idempotency import KeyedAnswer, RequestKey, first_answer, keep_answer
from daemon.store.removals import Removals
from daemon.store.retention import NO_LIMITS, Limits, Retention
from daemon.store.revisions import (
    Label,
    Labelled,
    Withdrawn,
    label_sample,
    retire_damaged,
    withdraw_sample,
)
from daemon.store.sample_rows import Outcome, SampleRows, Stored
from daemon.store.schema import DATABASE_NAME
from daemon.store.writer import Work, Writer

# What a sample takes in the queue beside its features, about.
_SAMPLE_BYTES = 400
_RECORDS_KEPT = 10_000  # of a kind, those written last

log = logging.getLogger(__name__)


class SampleStore:
    """The database, through its one writer.

    Args:
        directory: Made if missing.
        max_classes: Class places.
        holdout_ratio: Share of the samples that only score.
        queue_samples: How many may wait to be written before clients are told to come back.
        queue_bytes: And how many bytes of them.
        drop_duplicates: Equal features, label and source are one sample, id and key or not.
        limits: What is kept; the oldest beyond it go.
        on_commit: Called in the writer thread after each group with its size and its seconds.

    Raises:
        StoreError: The database cannot be opened with the promised durability, and waiting will
            not change that; where it may, the store is there and unavailable.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_classes: int,
        holdout_ratio: float,
        queue_samples: int,
        queue_bytes: int = 64 << 20,
        drop_duplicates: bool = False,
        limits: Limits = NO_LIMITS,
        on_commit: Callable[[int, float], None] = lambda samples, seconds: None,
    ) -> None:
        self._rows = SampleRows(
            max_classes=max_classes, holdout_ratio=holdout_ratio, drop_duplicates=drop_duplicates
        )
        self._keys: set[str] = set()
        self._keys_lock = threading.Lock()
        self._path = directory / DATABASE_NAME
        self._database = Database(directory, self._rows.load)
        self._database.open()
        self._retention = Retention(limits, self._rows)
        self._writer = Writer(
            self._database,
            self._rows,
            self._retention,
            queue_samples=queue_samples,
            queue_bytes=queue_bytes,
            on_commit=on_commit,
        )

    @property
    def path(self) -> Path:
        """The database; `list_samples` and `count_samples` read it past the writer."""
        return self._path

    @property
    def unavailable(self) -> Unavailable | None:
        """Why nothing can be written; None: it can."""
        return self._database.unavailable

    @property
    def refuses(self) -> Unavailable | None:
        """Why no sample is taken; None: they are."""
        return self._writer.refuses

    @property
    def samples_lost(self) -> int:
        """Acknowledged samples that the database was found without, ever."""
        return self._database.samples_lost

    @property
    def removed(self) -> Removals:
        """What retention removed since the start."""
        return self._retention.removals

    def learned(self, seq: int) -> None:
        """Note that the learner has met every sample up to this sequence number."""
        self._retention.learned_seq = seq

    @property
    def learned_seq(self) -> int:
        """The highest sequence number that the learner is known to have met."""
        return self._retention.learned_seq

    @property
    def known(self) -> bool:
        """Whether the database was open once since the start, so that `counts` says something."""
        return self._database.loaded

    @property
    def counts(self) -> StoreCounts:
        """As of the last commit."""
        return self._rows.counts

    @property
    def classes(self) -> int:
        """Class places in use."""
        return len(self._rows.classes)

    @property
    def queue_depth(self) -> int:
        """Samples that wait to be written."""
        return self._writer.waiting_samples

    @property
    def queue_limit(self) -> int:
        """Most samples that may wait."""
        return self._writer.limit_samples

    def add(self, samples: list[Sample]) -> Acknowledgement[list[Outcome]]:
        """Queue samples; acknowledged once those accepted are durable.

        Returns:
            For each sample in order, where it went or why it was refused.

        Raises:
            QueueFullError: Too many wait already; nothing was queued.
            StorageError: (when acknowledged) the transaction failed; should the process end before
                the database is opened anew, samples may be there all the same.
        """
        return self._writer.submit(
            lambda connection: self._rows.insert(connection, samples),
            samples=len(samples),
            size=_size(samples),
        )

    def add_once(
        self,
        samples: list[Sample],
        request: RequestKey,
        answer: Callable[[list[Outcome]], bytes],
    ) -> Acknowledgement[KeyedAnswer]:
        """Queue the samples of a request with a key; a repeat of it gets its first answer.

        Args:
            samples: As for `add`.
            request: The key.
            answer: Called in the writer thread where something was kept, makes the answer from
                what became of the samples.

        Raises:
            KeyInUseError: A request with this key is being written.
            KeyReusedError: (when acknowledged) the key belongs to another request.
            QueueFullError: As `add`.
            StorageError: As `add`.
        """

        def work(connection: sqlite3.Connection) -> KeyedAnswer:
            if (first := first_answer(connection, request)) is not None:
                return KeyedAnswer(first, [], replayed=True)
            outcomes = self._rows.insert(connection, samples, keyed=True)
            kept = [outcome.seq for outcome in outcomes if isinstance(outcome, Stored)]
            if not kept:
                return KeyedAnswer(None, outcomes, replayed=False)
            body = answer(outcomes)
            keep_answer(connection, request, body, max(kept))
            return KeyedAnswer(body, outcomes, replayed=False)

        with self._keys_lock:
            if request.key in self._keys:
                raise KeyInUseError("a request with this Idempotency-Key is being written: wait")
            acknowledgement = self._writer.submit(work, samples=len(samples), size=_size(samples))
            self._keys.add(request.key)
        acknowledgement.add_done_callback(lambda _: self._keys.discard(request.key))
        return acknowledgement

    def label(self, sample_id: str, label: Label, *, replace: bool) -> Acknowledgement[Labelled]:
        """Label a sample; see `label_sample`."""
        return self._writer.submit(
            lambda connection: label_sample(
                connection, self._rows, sample_id, label, replace=replace
            ),
            samples=1,
            size=_SAMPLE_BYTES,
        )

    def withdraw(self, sample_id: str) -> Acknowledgement[Withdrawn]:
        """Withdraw a sample; see `withdraw_sample`."""
        return self._writer.submit(
            lambda connection: withdraw_sample(connection, self._rows, sample_id),
            samples=1,
            size=_SAMPLE_BYTES,
            frees=True,
        )

    def retire_damaged(self, seqs: list[int]) -> Acknowledgement[None]:
        """Take rows out of all that counts whose check failed."""
        return self._writer.submit(lambda connection: retire_damaged(connection, self._rows, seqs))

    def record(self, kind: str, number: int, body: dict[str, Any]) -> Acknowledgement[None]:
        """Keep a JSON record, such as a gate decision, under its number."""
        return self._writer.submit(_record(kind, number, body))

    def record_when_possible(
        self, kind: str, number: int, body: dict[str, Any]
    ) -> Acknowledgement[None]:
        """Keep a JSON record now, or when the store is available again."""
        return self._writer.submit(_record(kind, number, body), lasting=True)

    def records(self, kind: str, limit: int) -> list[dict[str, Any]]:
        """The newest records of a kind, newest first; read past the writer.

        Raises:
            StorageError: They cannot be read.
        """
        query = "SELECT body FROM records WHERE kind = ? ORDER BY number DESC LIMIT ?"
        return self._bodies(query, kind, limit)

    def last_recorded(self, kinds: Collection[str], limit: int) -> list[dict[str, Any]]:
        """The records of several kinds that were written last, the last one first.

        Neither their numbers nor a clock says that: rows are in the order of writing.

        Raises:
            StorageError: They cannot be read.
        """
        places = ", ".join("?" * len(kinds))
        query = f"SELECT body FROM records WHERE kind IN ({places}) ORDER BY rowid DESC LIMIT ?"  # noqa: S608 - question marks
        return self._bodies(query, *kinds, limit)

    def _bodies(self, query: str, *values: str | int) -> list[dict[str, Any]]:
        try:
            with closing(open_reader(self._path)) as connection:
                return [json.loads(body) for (body,) in connection.execute(query, values)]
        except sqlite3.Error as error:
            if (unavailable := self.unavailable) is not None:  # which was told already
                cause, why = unavailable.cause, unavailable.why
                raise StoreUnavailableError(cause, why, what="cannot be read") from error
            log.warning("records cannot be read", extra={"why": str(error)})
            raise StorageError("what was recorded cannot be read now") from error

    def tick(self) -> Acknowledgement[None]:
        """Done once the writer gets to it; see `Writer.tick`."""
        return self._writer.tick()

    def close(self) -> None:
        """Write what is queued, then close; closing twice is harmless."""
        self._writer.close()


def _record(kind: str, number: int, body: dict[str, Any]) -> Work:
    text = json.dumps(body)

    def write(connection: sqlite3.Connection) -> None:
        # One that is written again becomes the newest row.
        connection.execute("REPLACE INTO records VALUES (?, ?, ?)", (kind, number, text))
        # In the order of writing: numbers begin again where the versions were moved away.
        connection.execute(
            "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE kind = :kind"
            " ORDER BY rowid LIMIT"
            " max(0, (SELECT count(*) FROM records WHERE kind = :kind) - :kept))",
            {"kind": kind, "kept": _RECORDS_KEPT},
        )

    return write


def _size(samples: list[Sample]) -> int:
    return sum(len(sample.features) + _SAMPLE_BYTES for sample in samples)
