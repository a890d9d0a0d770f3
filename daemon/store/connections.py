"""How the database is opened: so that acknowledged means durable, or only to be read."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from daemon.errors import StoreError
from daemon.store.availability import LOG_IN_USE
from daemon.store.schema import migrate

log = logging.getLogger(__name__)

_LOG_LIMIT_BYTES = 16 << 20
# An error in a mapped file is a signal, not an error code: no mmap.
_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
    "secure_delete": 1,  # what is withdrawn is written over, not only let go
    "mmap_size": 0,
    "trusted_schema": 0,
    "journal_size_limit": _LOG_LIMIT_BYTES,
}


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection for the calling thread.

    Where the file system is read-only SQLite cannot make what readers share. Nobody writes then, so
    that a database whose log is empty is whole by itself, and read without it.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    if _is_at_rest(path):
        uri += "&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
    connection.text_factory = _text
    return connection


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection of the one writer, as durable as is promised.

    Raises:
        StoreError: The file system does not let it be, or the tables are of a later version.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    try:
        _make_durable(connection, path)
    except BaseException:
        connection.close()
        raise
    log.info("database opened", extra={"sqlite": sqlite3.sqlite_version, **_PRAGMAS})
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        log.info(
            "this SQLite can damage a database that two connections checkpoint at once "
            "(mended in 3.51.3, 3.50.7 and 3.44.6); here one connection writes, and it alone "
            "checkpoints",
            extra={"sqlite": sqlite3.sqlite_version},
        )
    return connection


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    for pragma, value in _PRAGMAS.items():
        # To its end: an I/O error on the way into WAL shows up only there.
        connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
        row = connection.execute(f"PRAGMA {pragma}").fetchone()
        if row is not None and row[0] != value:
            raise StoreError(
                f"{path}: PRAGMA {pragma} is {row[0]!r} and not {value!r}, so an acknowledged "
                "sample could be lost; is this a network file system?"
            )
    # Whatever a crash has left in the log goes into the database first: nothing that is
    # acknowledged from now on lies behind frames that may have been cut or damaged.
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError(LOG_IN_USE)
    try:
        migrate(connection)
    except ValueError as error:
        raise StoreError(
            f"{path}: {error}: install that version, or choose another store.directory"
        ) from error
    # Fails now, and not at the first sample, where the file may be read but not written.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _is_at_rest(path: Path) -> bool:
    try:
        if not os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return False
        return path.with_name(f"{path.name}-wal").stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this version of SQLite may lose a reset of the log to a second writer."""
    mended_in = {44: 6, 50: 7}.get(version[1]) if version[0] == 3 else None
    if mended_in is not None:
        return version[2] < mended_in
    return (3, 7, 0) <= version < (3, 51, 3)


def _text(text: bytes) -> str:
    """Bytes that are not UTF-8 are damage, and read as other text: the row's check refuses it."""
    return text.decode(errors="replace")
