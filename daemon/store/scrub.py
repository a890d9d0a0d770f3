"""The scrub: passes over all rows, slowly, and has the writer retire those that are damaged.

A thread with the lowest priority and a read-only connection of its own. It reads a few rows, checks
them, and waits; so many a second at most, and a while after each whole pass.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from daemon.store.connections import open_reader
from daemon.store.row_check import CHECKED, is_page_damage, is_sound
from daemon.store.schema import LIVE

log = logging.getLogger(__name__)

_BATCH_ROWS = 200
_REST_SECONDS = 3600.0  # after a whole pass
_RETRY_SECONDS = 30.0  # where the database cannot be read
_ROWS = f"SELECT {CHECKED}, crc FROM samples WHERE retired = {LIVE} AND"  # noqa: S608 - our own
_NICENESS = 19


@dataclass
class ScrubReport:
    """What it has done since the start.

    Args:
        rows: Checked, in all passes.
        damaged: Of them, not as they were written.
        unreadable: Numbers that no row could be read for, since their page is damaged.
        passes: Whole ones.
        passed_at: When the last one ended, on the monotonic clock; None: none has.
    """

    rows: int = 0
    damaged: int = 0
    unreadable: int = 0
    passes: int = 0
    passed_at: float | None = None


class Scrub:
    """The thread.

    Args:
        path: The database.
        retire: Has the writer retire rows by their numbers; may raise.
        rows_per_second: At most; 0: no row is ever checked.
        rest_seconds: After a whole pass.
    """

    def __init__(
        self,
        path: Path,
        retire: Callable[[list[int]], object],
        *,
        rows_per_second: int,
        rest_seconds: float = _REST_SECONDS,
    ) -> None:
        self.report = ScrubReport()
        self._path = path
        self._retire = retire
        self._rest_seconds = rest_seconds
        self._pause_seconds = _BATCH_ROWS / rows_per_second if rows_per_second else None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-scrub", daemon=True)

    def start(self) -> None:
        """Begin the first pass."""
        if self._pause_seconds is not None:
            self._thread.start()

    def stop(self) -> None:
        """End within a batch."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux: niceness is a thread's own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        told = ""
        while not self._stopping.is_set():
            try:
                self._pass()
                told, pause = "", self._rest_seconds
            except (sqlite3.Error, OSError) as error:
                pause = _RETRY_SECONDS
                if str(error) != told:
                    log.warning("scrub cannot read the database", extra={"why": str(error)})
                told = str(error)
            self._stopping.wait(pause)

    def _pass(self) -> None:
        """Check every row that there was at its beginning."""
        with closing(open_reader(self._path)) as connection:
            (last,) = connection.execute("SELECT last_seq FROM store_state").fetchone()
            through = 0
            while through < last and not self._stopping.wait(self._pause_seconds):
                through = self._check_some(connection, through, last)
        if not self._stopping.is_set():
            self.report.passes += 1
            self.report.passed_at = time.monotonic()

    def _check_some(self, connection: sqlite3.Connection, after: int, last: int) -> int:
        """Check the next rows; up to which number it went."""
        query = f"{_ROWS} seq > ? ORDER BY seq LIMIT {_BATCH_ROWS}"
        try:
            rows = connection.execute(query, (after,)).fetchall()
        except sqlite3.DatabaseError as error:
            if not is_page_damage(error):
                raise
            return self._check_singly(connection, after, min(after + _BATCH_ROWS, last))
        self._check(rows)
        return rows[-1][0] if len(rows) == _BATCH_ROWS else last

    def _check_singly(self, connection: sqlite3.Connection, after: int, through: int) -> int:
        """Where a page is damaged: each number by itself, so that rows beside it are checked."""
        unreadable = 0
        for seq in range(after + 1, through + 1):
            try:
                self._check(connection.execute(f"{_ROWS} seq = ?", (seq,)).fetchall())
            except sqlite3.DatabaseError as error:
                if not is_page_damage(error):
                    raise
                unreadable += 1
        if unreadable:
            self.report.unreadable += unreadable
            extra = {"rows": unreadable, "after_seq": after, "through_seq": through}
            log.error("damaged pages: rows cannot be read", extra=extra)
        return through

    def _check(self, rows: list[tuple[object, ...]]) -> None:
        damaged = [int(str(row[0])) for row in rows if not is_sound(row)]
        self.report.rows += len(rows)
        if not damaged:
            return
        self.report.damaged += len(damaged)
        log.error("damaged rows: they are retired", extra={"seqs": damaged})
        try:
            self._retire(damaged)
        except Exception as error:  # noqa: BLE001 - they are met again in the next pass
            log.error("damaged rows are not retired", extra={"why": str(error)})
