"""The one thread that writes: a bounded queue, group commit, and nothing told before it is durable.

Work waits in a queue. The thread takes whatever is there, up to a bound, runs it in one
transaction, commits with `synchronous=FULL`, and only then lets go those who wait. No timer: while
one group is being synced the next one gathers. Between groups rows beyond the limits go.

While the database is unavailable (`database.py`) what waits is refused; only records, which nobody
would send again, are held until it is back.
"""

from __future__ import annotations

import functools
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from daemon.errors import QueueFullError, RequestError, StorageError, StoreUnavailableError
from daemon.store.acknowledgement import Acknowledgement, tell
from daemon.store.availability import Unavailable
from daemon.store.counts import StoreCounts
from daemon.store.database import Database
from daemon.store.retention import STEP_ROWS, Retention

log = logging.getLogger(__name__)

GROUP_SAMPLES = 1024
_GROUP_BYTES = 8 << 20
# While nobody sends anything the time of service is still written down.
_IDLE_SECONDS = 60.0
_SETTLE_SECONDS = 1.0  # after the last group limits are met to the row
_UNAVAILABLE_SECONDS = 0.2  # between two looks at whether the database can be opened
_MOST_HELD = 1000
_MOST_FAILURES = 3  # groups in a row that nothing explains
_FAILED = (
    "this could not be written, and may be kept or not: send it again with the same id or "
    "Idempotency-Key"
)

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], Any]


class Contents(Protocol):
    """What is remembered of the database, and held back until a group's end."""

    @property
    def counts(self) -> StoreCounts:
        """As of the last commit."""

    def load(self, connection: sqlite3.Connection) -> None:
        """Forget what was held back, and read anew: at the opening, and after a roll-back."""

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write what is held back: last in each transaction."""

    def committed(self) -> None:
        """What was written is durable."""


@dataclass(slots=True)
class _Item:
    samples: int
    size: int
    work: Work
    acknowledgement: Acknowledgement[Any]
    lasting: bool = False


class Writer:
    """Runs work in transactions, in order, on a thread of its own.

    Args:
        database: Its own from now on; open, or unavailable.
        contents: Told of each transaction's end.
        retention: Says what has to go.
        queue_samples: How many samples may wait before clients are told to come back.
        queue_bytes: And how many bytes of them.
        on_commit: Called in the thread after each group with its samples and its seconds.
    """

    def __init__(
        self,
        database: Database,
        contents: Contents,
        retention: Retention,
        *,
        queue_samples: int,
        queue_bytes: int,
        on_commit: Callable[[int, float], None],
    ) -> None:
        self._database = database
        self._contents = contents
        self._retention = retention
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[_Item | Acknowledgement[None] | None] = queue.SimpleQueue()
        self.limit_samples, self._limit_bytes = queue_samples, queue_bytes
        self.waiting_samples = self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._held: deque[_Item] = deque()
        self._settled = self._closed = False
        self._loaded = True
        self._failures = 0
        self._under_way: list[_Item] = []
        self._thread = threading.Thread(target=self._run, name="store-writer")
        self._thread.start()

    @property
    def refuses(self) -> Unavailable | None:
        """Why samples are refused; None: they are taken."""
        if (unavailable := self._database.unavailable) is not None:
            return unavailable
        cause = self._retention.refuses
        return None if cause is None else Unavailable(cause, "no room for more rows")

    def submit(
        self,
        work: Work,
        *,
        samples: int = 0,
        size: int = 0,
        lasting: bool = False,
        frees: bool = False,
    ) -> Acknowledgement[Any]:
        """Queue work; what it returns, or the `RequestError` it raises, comes once it is durable.

        Work that raises a `RequestError` must have changed nothing. Any other error undoes the
        whole group.

        Args:
            work: Called with the connection, in a transaction.
            samples: How many samples it writes at most.
            size: Bytes that they hold while they wait.
            lasting: Hold it while the database is unavailable, and acknowledge it when it is not.
            frees: It makes room, and so is taken also where there is none for samples.

        Raises:
            QueueFullError: Too much waits already; nothing was queued.
            StoreUnavailableError: Nothing can be written now.
            StorageError: The daemon is stopping; or, from the acknowledgement, the transaction
                failed.
        """
        item = _Item(samples, size, work, Acknowledgement(), lasting)
        unavailable = self.refuses if samples and not frees else self._database.unavailable
        with self._lock:
            if self._closed:
                raise StorageError("the daemon is stopping")
            if unavailable is not None and not lasting:
                raise _refusal(unavailable)
            # A request larger than the whole queue is let in when nothing else waits.
            if samples and self.waiting_samples:
                self._check_room(samples, size)
            self.waiting_samples += samples
            self._waiting_bytes += size
            self._queue.put(item)
        return item.acknowledgement

    def tick(self) -> Acknowledgement[None]:
        """Done once the thread gets to it, which proves that it does; nothing is written.

        Raises:
            RuntimeError: It is closed.
        """
        acknowledgement = Acknowledgement[None]()
        with self._lock:
            if self._closed:
                raise RuntimeError("the writer is closed")
            self._queue.put(acknowledgement)
        return acknowledgement

    def close(self) -> None:
        """Write what is queued, then close the connection; closing twice is harmless."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._queue.put(None)
        self._thread.join()

    def _check_room(self, samples: int, size: int) -> None:
        if self.waiting_samples + samples > self.limit_samples:
            raise QueueFullError(
                f"{self.waiting_samples} samples wait to be written, at most "
                f"{self.limit_samples} may"
            )
        if self._waiting_bytes + size > self._limit_bytes:
            raise QueueFullError(
                f"{self._waiting_bytes} bytes of samples wait to be written, at most "
                f"{self._limit_bytes} may"
            )

    def _run(self) -> None:
        stop = False
        while not stop:
            group, stop = self._next_group()
            try:
                self._take_turn(group, stop)
            except Exception as error:
                log.exception("the store's writer failed")
                self._database.distrust(error)
                self._refuse(self._unsettled(group), self._database.unavailable)
        if self._held:
            log.error(
                "records are lost: the store stayed unavailable", extra={"n": len(self._held)}
            )
        self._settle([*self._held], [StorageError(_FAILED)] * len(self._held))
        self._database.close()

    def _take_turn(self, group: list[_Item], stop: bool) -> None:
        if not self._database.open_again():
            self._refuse(group, self._database.unavailable)
            return
        if group or (self._settled and not stop):
            self._commit(group)
        if self._held and self._database.unavailable is None:
            held, self._held = [*self._held], deque()
            self._commit(held)
        if not stop:
            self._look_after(group)

    def _unsettled(self, group: list[_Item]) -> list[_Item]:
        known = {id(item.acknowledgement): item for item in (*group, *self._under_way)}
        return [item for item in known.values() if not item.acknowledgement.done()]

    def _next_group(self) -> tuple[list[_Item], bool]:
        group: list[_Item] = []
        samples = size = 0
        at_rest = self._settled and self._retention.refuses is None
        patience = _IDLE_SECONDS if at_rest else _SETTLE_SECONDS
        if self._database.unavailable is not None:
            patience = _UNAVAILABLE_SECONDS
        until = time.monotonic() + patience
        try:
            while samples < GROUP_SAMPLES and size < _GROUP_BYTES:
                if group:
                    item = self._queue.get_nowait()
                else:
                    item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                if item is None:
                    return group, True
                if isinstance(item, Acknowledgement):
                    item.set_result(None)
                    continue
                group.append(item)
                samples += item.samples
                size += item.size
        except queue.Empty:
            pass
        return group, False

    def _commit(self, group: list[_Item]) -> bool:
        started = time.monotonic()
        self._under_way = group
        samples = sum(item.samples for item in group)
        results: list[Any] = []
        try:
            connection = self._database.connection
            connection.execute("BEGIN IMMEDIATE")
            if not self._loaded:
                self._load(connection)
            for item in group:
                try:
                    results.append(item.work(connection))
                except RequestError as error:
                    results.append(error)
            self._contents.flush(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the callers get it; the thread must live on
            if not self._database.fail(error):
                log.error("transaction failed", extra={"error": repr(error), "samples": samples})
                self._roll_back()
                self._failures += 1
                if self._failures >= _MOST_FAILURES and self._database.unavailable is None:
                    self._database.distrust(error)
            self._refuse(group, self._database.unavailable)
            return False
        self._failures = 0
        self._contents.committed()
        self._database.committed(self._contents.counts.last_seq)
        seconds = time.monotonic() - started
        self._settle(group, results)
        if samples:
            self._on_commit(samples, seconds)
        return True

    def _look_after(self, group: list[_Item]) -> None:
        """Between groups: rows beyond the limits go, as many as came and some more."""
        idle = not group
        most = sum(item.samples for item in group) + STEP_ROWS
        removed = 0
        while self._database.unavailable is None and (removed < most or self._idle(idle)):
            try:
                reason = self._retention.reason(
                    self._database.connection, idle=idle, disk_full=self._database.short_of_room
                )
            except sqlite3.Error as error:
                log.error("limits cannot be looked at", extra={"error": repr(error)})
                self._database.fail(error)
                break
            if reason is None:
                break
            step = Acknowledgement[int]()
            work = functools.partial(self._retention.step, reason=reason)
            if not self._commit([_Item(0, 0, work, step)]) or not step.result():
                break
            removed += step.result()
            self._retention.removed(reason, step.result())
        self._settled = idle
        self._database.tend(self._contents.counts.last_seq)

    def _idle(self, idle: bool) -> bool:
        return idle and self._queue.empty()

    def _refuse(self, group: list[_Item], unavailable: Unavailable | None) -> None:
        failure = StorageError(_FAILED) if unavailable is None else _refusal(unavailable)
        self._held.extend(item for item in group if item.lasting)
        while len(self._held) > _MOST_HELD:
            log.error("a record is lost: too many wait for the store")
            self._held.popleft().acknowledgement.set_exception(failure)
        refused = [item for item in group if not item.lasting]
        self._settle(refused, [failure] * len(refused))

    def _settle(self, group: list[_Item], results: list[Any]) -> None:
        with self._lock:
            self.waiting_samples -= sum(item.samples for item in group)
            self._waiting_bytes -= sum(item.size for item in group)
        tell([item.acknowledgement for item in group], results)

    def _roll_back(self) -> None:
        connection = self._database.connection
        # Should the reading fail now, the next transaction begins with it.
        self._loaded = False
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._load(connection)
        except sqlite3.Error as error:
            log.error("roll-back failed", extra={"error": str(error)})
            if not self._database.fail(error):
                self._database.distrust(error)

    def _load(self, connection: sqlite3.Connection) -> None:
        self._contents.load(connection)
        self._loaded = True


def _refusal(unavailable: Unavailable) -> StoreUnavailableError:
    return StoreUnavailableError(unavailable.cause, unavailable.why)
