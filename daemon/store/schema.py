"""The database: its tables, and how it is opened so that acknowledged means durable.

sqlite-utils owns the schema and its migrations.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database, Migrations

from daemon.errors import StoreError

DATABASE_NAME = "ffedge.sqlite"

migrations = Migrations("ffedge")


@migrations()
def create_tables(db: Database) -> None:
    """Samples, class places, and what was done with them."""
    db.executescript(
        """
        CREATE TABLE samples (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            class_index INTEGER NOT NULL REFERENCES classes(class_index),
            holdout INTEGER NOT NULL,
            dtype TEXT NOT NULL,
            features BLOB NOT NULL,
            source TEXT NOT NULL,
            ts TEXT
        );
        CREATE TABLE classes (
            class_index INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            is_integer INTEGER NOT NULL
        );
        CREATE TABLE records (
            kind TEXT NOT NULL,
            number INTEGER NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (kind, number)
        );
        """
    )


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection for the calling thread."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection of the one writer, as durable as is promised.

    Raises:
        StoreError: The file system does not let it be.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "mmap_size": 0}
    for pragma, value in wanted.items():
        connection.execute(f"PRAGMA {pragma} = {value}")
        row = connection.execute(f"PRAGMA {pragma}").fetchone()
        if row is not None and row[0] != value:
            raise StoreError(
                f"{path}: PRAGMA {pragma} is {row[0]!r} and not {value!r}, so an acknowledged "
                "sample could be lost; is this a network file system?"
            )
    connection.execute("PRAGMA trusted_schema = OFF")
    migrations.apply(Database(connection, execute_plugins=False))
    # Fails now, and not at the first sample, where the file may be read but not written.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
    return connection
