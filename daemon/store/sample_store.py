"""Samples on disk: one writer thread, group commit, acknowledged only after the commit is durable.

Clients' samples wait in a bounded queue. The writer takes whatever is there (up to 256), puts it in
one transaction, commits with `synchronous=FULL`, and only then resolves the futures that the
requests wait on. No timer: while one group is being synced the next one gathers.

Only this thread writes to the database; the learner reads through a connection of its own
(`daemon.sample_reader`). sqlite-utils owns the schema and its migrations; the inserts run on its
connection directly, because each of its own calls commits by itself.

Whether a sample belongs to the hold-out is decided by a hash of its features: what scores a model
is never trained on, not even when the same reading is sent twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.durable import sync_folder
from daemon.errors import (
    BadFieldError,
    IdConflictError,
    QueueFullError,
    RequestError,
    StorageError,
    StoreError,
    TooManyClassesError,
)
from daemon.ingest.sample import OWN_ID_PREFIX, Sample
from daemon.store.schema import DATABASE_NAME, open_reader, open_writer

log = logging.getLogger(__name__)

GROUP_SAMPLES = 256


@dataclass(frozen=True)
class Stored:
    """Where one sample went.

    Args:
        id: Its id, the client's or the store's.
        seq: Its place in the order of arrival.
        duplicate: It was there already, with equal content.
    """

    id: str
    seq: int
    duplicate: bool


@dataclass(frozen=True)
class StoreCounts:
    """How much the store holds.

    Args:
        samples: All of them.
        holdout: Those that only ever score.
        last_seq: Sequence number of the newest; 0 when empty.
    """

    samples: int
    holdout: int
    last_seq: int


_Work = Callable[[sqlite3.Connection], Any]


class SampleStore:
    """The database's one writer.

    Args:
        directory: Made if missing.
        max_classes: Class places.
        holdout_ratio: Share of the samples that only score.
        queue_samples: How many may wait to be written before clients are told to come back.
        on_commit: Called in the writer thread after each group with its size and its seconds.

    Raises:
        StoreError: The database cannot be opened with the promised durability.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_classes: int,
        holdout_ratio: float,
        queue_samples: int,
        on_commit: Callable[[int, float], None] = lambda samples, seconds: None,
    ) -> None:
        self._max_classes = max_classes
        self._holdout_ratio = holdout_ratio
        self._on_commit = on_commit
        self._queue: queue.Queue[tuple[int, _Work, Future[Any]] | None] = queue.Queue()
        self._limit = queue_samples
        self._waiting = 0
        self._lock = threading.Lock()
        self._closed = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._path = directory / DATABASE_NAME
            self._connection = open_writer(self._path)
            sync_folder(directory.absolute().parent)
            self._load()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot use the database in {directory} ({error}): make it writable, or move "
                f"{DATABASE_NAME} away to begin without its samples"
            ) from error
        self._thread = threading.Thread(target=self._write, name="store-writer")
        self._thread.start()

    @property
    def counts(self) -> StoreCounts:
        """As of the last commit."""
        return self._counts

    @property
    def classes(self) -> int:
        """Class places in use."""
        return len(self._classes)

    @property
    def queue_depth(self) -> int:
        """Samples that wait to be written."""
        return self._waiting

    @property
    def queue_limit(self) -> int:
        """Most samples that may wait."""
        return self._limit

    def add(self, samples: list[Sample]) -> Future[list[Stored | RequestError]]:
        """Queue samples; the future resolves once those accepted are durable.

        Returns:
            For each sample in order, where it went or why it was refused.

        Raises:
            QueueFullError: Too many wait already; nothing was queued.
            StorageError: (from the future) the transaction failed; nothing of it was kept.
        """
        return self._submit(len(samples), lambda connection: self._insert(connection, samples))

    def record(self, kind: str, number: int, body: dict[str, Any]) -> Future[None]:
        """Keep a JSON record, such as a finished job or a gate decision, under its number."""
        text = json.dumps(body)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("REPLACE INTO records VALUES (?, ?, ?)", (kind, number, text))

        return self._submit(0, write)

    def records(self, kind: str, limit: int) -> list[dict[str, Any]]:
        """The newest records of a kind, newest first; read past the writer."""
        query = "SELECT body FROM records WHERE kind = ? ORDER BY number DESC LIMIT ?"
        with closing(open_reader(self._path)) as connection:
            return [json.loads(body) for (body,) in connection.execute(query, (kind, limit))]

    def close(self) -> None:
        """Write what is queued, then close; closing twice is harmless."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._queue.put(None)
        self._thread.join()

    def _submit(self, samples: int, work: _Work) -> Future[Any]:
        future: Future[Any] = Future()
        # A client that hangs up cancels what it waits for; the writer must not trip over that.
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise StorageError("the daemon is stopping")
            # A request larger than the whole queue is let in when nothing else waits.
            if samples and self._waiting and self._waiting + samples > self._limit:
                raise QueueFullError(
                    f"{self._waiting} samples wait to be written, at most {self._limit} may"
                )
            self._waiting += samples
            self._queue.put((samples, work, future))
        return future

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            group, samples = [first], first[0]
            stop = False
            while samples < GROUP_SAMPLES and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    stop = True
                    break
                group.append(item)
                samples += item[0]
            self._commit(group, samples)
            if stop:
                break
        self._connection.close()

    def _commit(self, group: list[tuple[int, _Work, Future[Any]]], samples: int) -> None:
        started = time.monotonic()
        results: list[Any] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [work(self._connection) for _, work, _ in group]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the callers get it; the thread must live on
            log.error("transaction failed", extra={"error": repr(error), "samples": samples})
            self._roll_back()
            failure = StorageError("the samples could not be written; nothing of them was kept")
            self._finish(samples)
            for _, _, future in group:
                future.set_exception(failure)
            return
        self._counts = self._counted
        self._finish(samples)
        seconds = time.monotonic() - started
        for (_, _, future), result in zip(group, results, strict=True):
            future.set_result(result)
        if samples:
            self._on_commit(samples, seconds)

    def _finish(self, samples: int) -> None:
        with self._lock:
            self._waiting -= samples

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._load()
        except sqlite3.Error as error:
            log.error("roll-back failed", extra={"error": str(error)})

    def _load(self) -> None:
        rows = self._connection.execute("SELECT name, class_index FROM classes")
        self._classes: dict[str, int] = dict(rows.fetchall())
        counted = """SELECT count(*), ifnull(sum(holdout), 0),
            ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'samples'), 0) FROM samples"""
        self._counts = self._counted = StoreCounts(*self._connection.execute(counted).fetchone())

    def _insert(
        self, connection: sqlite3.Connection, samples: list[Sample]
    ) -> list[Stored | RequestError]:
        results: list[Stored | RequestError] = []
        for sample in samples:
            try:
                results.append(self._insert_one(connection, sample))
            except RequestError as error:
                results.append(error)
        return results

    def _insert_one(self, connection: sqlite3.Connection, sample: Sample) -> Stored:
        if sample.id is not None and (known := self._find(connection, sample)):
            return known
        class_index = self._class_index(connection, sample.label)
        seq = self._counted.last_seq + 1
        holdout = in_holdout(sample, self._holdout_ratio)
        sample_id = sample.id or f"{OWN_ID_PREFIX}{seq}"
        row = (seq, sample_id, class_index, holdout, sample.dtype, sample.features)
        connection.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, sample.source, sample.ts)
        )
        counted = self._counted
        self._counted = StoreCounts(counted.samples + 1, counted.holdout + holdout, seq)
        return Stored(sample_id, seq, duplicate=False)

    def _find(self, connection: sqlite3.Connection, sample: Sample) -> Stored | None:
        row = connection.execute(
            "SELECT seq, features, dtype, name FROM samples NATURAL JOIN classes WHERE id = ?",
            (sample.id,),
        ).fetchone()
        if row is None:
            return None
        seq, *content = row
        if content != [sample.features, sample.dtype, str(sample.label)]:
            raise IdConflictError("this id belongs to a sample with other content", field="id")
        return Stored(str(sample.id), seq, duplicate=True)

    def _class_index(self, connection: sqlite3.Connection, label: int | str | None) -> int:
        if label is None:
            raise BadFieldError("field 'label' is missing", field="label")
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


def in_holdout(sample: Sample, ratio: float) -> bool:
    """Whether a sample only ever scores: a fixed pseudo-random share of all contents."""
    content = sample.dtype.encode() + sample.features
    digest = hashlib.blake2s(content, digest_size=4).digest()
    return int.from_bytes(digest, "little") < ratio * 2**32
