"""The power log: readings on disk, ever coarser with age, never more than `MOST_ROWS` rows.

Its own file, thread and connection: samples are never kept waiting for it. Once a minute what came
is written in one transaction that also makes the means and drops what is too old. Nothing here is
promised: a crash loses the last minute, and a file that is damaged or cannot be written to switches
the log off, with one warning and no other effect.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database, Migrations

from daemon.power_reading import PowerReading

log = logging.getLogger(__name__)

DATABASE_NAME = "power.sqlite3"
# Newest rows kept in each table: an hour of readings at the default interval, a week, a year.
KEPT = {"readings": 3600, "minutes": 7 * 24 * 60, "hours": 365 * 24}
MOST_ROWS = sum(KEPT.values())
_WRITE_SECONDS = 60.0
_LOCKED_SECONDS = 30.0  # who looks at the file may hold it for a while
_MOST_WAITING = 2 * KEPT["readings"]

migrations = Migrations("power")


@migrations()
def create_tables(db: Database) -> None:
    """One table a resolution, of one form: `at` is the second that a row begins with."""
    for table in KEPT:
        columns = {
            "at": int,
            "readings": int,
            "watts": float,
            "watts_max": float,
            "celsius_max": float,
            "ram_used_bytes": int,
        }
        db.table(table).create(columns, not_null={"at", "readings"})
        if table != "readings":
            db.table(table).create_index(["at"], unique=True)


# A mean is made again while its time lasts, from all that is there; a restart changes nothing.
# Where the clock stepped back, what a mean was made of may be gone: one of more readings stays.
# Rows are dropped by order of writing and not by their time, since a board without a clock
# battery may begin in 1970.
_SUMMARY = """
    REPLACE INTO {to} (at, readings, watts, watts_max, celsius_max, ram_used_bytes)
    SELECT at / {seconds} * {seconds} AS begins, sum(readings) AS counted,
        sum(watts * readings) / sum(readings), max(watts_max), max(celsius_max),
        CAST(avg(ram_used_bytes) AS INTEGER)
    FROM {source}
    WHERE begins IN (
        SELECT at / {seconds} * {seconds} FROM readings ORDER BY rowid DESC LIMIT :new
    )
    GROUP BY begins
    HAVING counted >= ifnull((SELECT readings FROM {to} WHERE at = begins), 0)
"""
_DROP = """
    DELETE FROM {table}
    WHERE rowid NOT IN (SELECT rowid FROM {table} ORDER BY rowid DESC LIMIT {kept})
"""


class PowerLog:
    """Readings for later; each call returns at once.

    Args:
        directory: Where the file lies.
        write_seconds: Between two writes.
    """

    def __init__(self, directory: Path, *, write_seconds: float = _WRITE_SECONDS) -> None:
        self._path = directory / DATABASE_NAME
        self._write_seconds = write_seconds
        self._waiting: list[tuple[object, ...]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._up = True
        self._thread = threading.Thread(target=self._run, name="power-log", daemon=True)

    @property
    def up(self) -> bool:
        """Whether readings are being kept."""
        return self._up

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, reading: PowerReading) -> None:
        """Keep a reading that has power."""
        row = (
            int(time.time()),
            1,
            reading.watts,
            reading.watts,
            max(reading.celsius.values(), default=None),
            reading.ram_used_bytes,
        )
        with self._lock:
            # A disk that hangs must not fill the memory.
            if self._up and len(self._waiting) < _MOST_WAITING:
                self._waiting.append(row)

    def stop(self) -> None:
        """Write what waits, and end."""
        self._stopping.set()
        self._thread.join(5.0)  # a disk that hangs does not keep the daemon from stopping

    def _run(self) -> None:
        try:
            with closing(self._open()) as connection:
                while not self._stopping.wait(self._write_seconds):
                    self._write(connection)
                self._write(connection)
        except (sqlite3.Error, OSError) as error:
            self._up = False
            self._waiting.clear()
            log.warning(
                "power log is off: make the file writable, or move it away, and restart",
                extra={"file": str(self._path), "why": str(error)},
            )

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=_LOCKED_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA trusted_schema = OFF")
            (found,) = connection.execute("PRAGMA quick_check").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            migrations.apply(Database(connection, execute_plugins=False))
            self._write(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            rows, self._waiting = self._waiting, []
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?)", rows)
        for source, to, seconds in (("readings", "minutes", 60), ("minutes", "hours", 3600)):
            query = _SUMMARY.format(source=source, to=to, seconds=seconds)
            connection.execute(query, {"new": len(rows)})
        for table, kept in KEPT.items():
            connection.execute(_DROP.format(table=table, kept=kept))
        connection.execute("COMMIT")
