"""The database's files in the writer's hands: open, or unavailable with a cause and opened anew.

A failed write is never tried again on the connection that it failed on: what an fsync did not bring
to disk may look written ever after. The connection is closed, and the next one begins by emptying
the write-ahead log, so that nothing acknowledged later lies behind frames that are not there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from daemon.clock import stamp
from daemon.durable import sync_folder
from daemon.errors import StoreError
from daemon.store.availability import (
    Backoff,
    Unavailable,
    damaged,
    damaged_after,
    unavailable_after,
)
from daemon.store.ballast import Ballast
from daemon.store.connections import open_writer
from daemon.store.counts import stored_last_seq
from daemon.store.mark import MARK_NAME, MarkFile, read_mark
from daemon.store.refused import remove_refused
from daemon.store.schema import DATABASE_NAME

log = logging.getLogger(__name__)

LOSS = "loss"
_TEND_SECONDS = 10.0


class Database:
    """Used by one thread at a time; the properties may be read by any.

    Args:
        directory: Made if missing.
        load: Reads what is remembered of the tables; called with each new connection.
    """

    def __init__(self, directory: Path, load: Callable[[sqlite3.Connection], None]) -> None:
        self._directory = directory
        self._load = load
        self._path = directory / DATABASE_NAME
        self._mark: MarkFile | None = None
        self._ballast = Ballast(directory)
        self._backoff = Backoff(directory)
        self._connection: sqlite3.Connection | None = None
        self._unavailable: Unavailable | None = None
        self._tended = 0.0
        self._acknowledged: int | None = None
        self.samples_lost = 0
        self.openings_failed = 0
        self.short_of_room = self.loaded = False

    @property
    def connection(self) -> sqlite3.Connection:
        """The writer's, while the database is open."""
        if self._connection is None:
            raise RuntimeError("the database is not open")
        return self._connection

    @property
    def unavailable(self) -> Unavailable | None:
        """Why it is not open; None: it is."""
        return self._unavailable

    def open(self) -> None:
        """Open it; where that fails for a cause that may pass, it is unavailable instead.

        Raises:
            StoreError: It cannot be used, and waiting will not change that.
        """
        try:
            self._open()
        except StoreError:
            raise
        except (OSError, sqlite3.Error) as error:
            if (unavailable := unavailable_after(error, self._directory)) is None:
                raise StoreError(
                    f"cannot use the database in {self._directory} ({error}): make it writable, or "
                    f"move {DATABASE_NAME} away to begin without its samples"
                ) from error
            self._become(unavailable)

    def open_again(self) -> bool:
        """Open it anew if that is due.

        Returns:
            Whether it is open.
        """
        before = self._unavailable
        if before is None:
            return True
        if not self._backoff.due(before.cause):
            return False
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - the writer's thread must live on
            # Of another form by now: that is no cause of its own.
            found = unavailable_after(error, self._directory) or damaged_after(error)
            self._become(found or before)
            return False
        log.warning("store is available again", extra={"was": before.cause})
        return True

    def fail(self, error: BaseException) -> bool:
        """Close it if the error says that it cannot be written, or is damaged.

        Returns:
            Whether it does.
        """
        unavailable = unavailable_after(error, self._directory) or damaged_after(error)
        if unavailable is not None:
            self._become(unavailable)
        return unavailable is not None

    def distrust(self, error: BaseException) -> None:
        """Close it after an error that nothing explains: a new connection may do better."""
        self._become(damaged(error))

    def committed(self, seq: int) -> None:
        """A transaction is durable, the newest row `seq`: put the mark there."""
        self._backoff.reset()
        self._acknowledged = seq
        if self._mark is None:
            return
        try:
            self._mark.write(seq)
        except OSError as error:
            # What was committed is on disk; only a later damage would go unseen.
            log.error("mark cannot be written", extra={"why": str(error)})
            self._drop_mark()

    def tend(self, seq: int) -> None:
        """Now and then: make what could not be made before.

        Args:
            seq: Of the newest row.
        """
        now = time.monotonic()
        if now - self._tended < _TEND_SECONDS:
            return
        self._tended = now
        if self._ballast.make():
            self.short_of_room = False
        if self._mark is None:
            self._open_mark(seq)

    def close(self) -> None:
        """Close the files that are open."""
        self._drop_mark()
        if self._connection is not None:
            # Its own checkpoint may fail: what is acknowledged is in the log.
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._connection = open_writer(self._path)
        try:
            sync_folder(self._directory.absolute().parent)
            seq = self._compare_with_mark(self._connection)
            if self._acknowledged is not None:
                remove_refused(self._connection, self._acknowledged)
            self._load(self._connection)
            self.loaded = True
        except BaseException:
            self.close()
            raise
        self._open_mark(seq)
        self._acknowledged, self._unavailable = seq, None
        self.tend(seq)

    def _become(self, unavailable: Unavailable) -> None:
        before, self._unavailable = self._unavailable, unavailable
        if before is None or before.cause != unavailable.cause:
            extra = {"cause": unavailable.cause, "error": unavailable.error}
            log.error("store is unavailable", extra=extra)
        self.close()
        self._backoff.failed()
        self.openings_failed += before is not None
        if unavailable.cause == "full":
            self.short_of_room = True
            if self._ballast.drop():
                log.warning("disk is full: the ballast is given up")

    def _compare_with_mark(self, connection: sqlite3.Connection) -> int:
        """Where the order stands; below the mark rows are gone, and it goes on above."""
        seq = stored_last_seq(connection)
        try:
            mark = read_mark(self._directory / MARK_NAME)
        except OSError as error:
            log.error("mark cannot be read", extra={"why": str(error)})
            mark = 0
        if seq < mark:
            lost = {"samples": mark - seq, "after_seq": seq, "found": stamp()}
            log.error("acknowledged samples are lost: the database was damaged", extra=lost)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE store_state SET last_seq = ?", (mark,))
            connection.execute(
                "REPLACE INTO records VALUES (?, ?, ?)", (LOSS, mark, json.dumps(lost))
            )
            connection.execute("COMMIT")
        losses = connection.execute("SELECT body FROM records WHERE kind = ?", (LOSS,)).fetchall()
        self.samples_lost = sum(json.loads(body)["samples"] for (body,) in losses)
        return max(seq, mark)

    def _open_mark(self, seq: int) -> None:
        try:
            self._mark = MarkFile(self._directory / MARK_NAME, seq)
        except OSError as error:
            log.warning("mark cannot be made", extra={"why": str(error)})

    def _drop_mark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            try:
                mark.close()
            except OSError as error:
                log.error("mark may not be on disk", extra={"why": str(error)})
