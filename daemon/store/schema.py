"""The database's tables and their migrations, which sqlite-utils runs, each in one transaction."""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

from daemon.store.row_check import row_crc

DATABASE_NAME = "ffedge.sqlite"

# Why a row no longer counts; 0: it does.
LIVE, SUPERSEDED, WITHDRAWN, DAMAGED = range(4)
RETIRED_NAMES = {SUPERSEDED: "relabelled", WITHDRAWN: "withdrawn", DAMAGED: "damaged"}
# In `counts`, where a key must not be NULL: the class place of samples without a label.
UNLABELLED = -1

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


@migrations()
def check_rows_and_count_them(db: Database) -> None:
    """Rows with a check, without a label or retired; counts, keys, and the order's end in tables.

    The features come last, so that no filter reads through them. Each index grows at its end, or at
    one end a class or source, except that of the clients' own ids. The index by class has the
    source in it: asking for both reads no row in vain.
    """
    db.executescript(
        """
        ALTER TABLE samples RENAME TO samples_1;
        CREATE TABLE samples (
            seq INTEGER PRIMARY KEY,
            id TEXT,
            class_index INTEGER REFERENCES classes(class_index),
            holdout INTEGER NOT NULL,
            dtype TEXT NOT NULL,
            source TEXT NOT NULL,
            ts TEXT,
            stored_at INTEGER NOT NULL,
            retired INTEGER NOT NULL,
            digest INTEGER,
            crc INTEGER NOT NULL,
            features BLOB NOT NULL
        );
        CREATE TABLE counts (
            retired INTEGER NOT NULL,
            class_index INTEGER NOT NULL,
            source TEXT NOT NULL,
            holdout INTEGER NOT NULL,
            samples INTEGER NOT NULL,
            PRIMARY KEY (retired, class_index, source, holdout)
        ) WITHOUT ROWID;
        CREATE TABLE idempotency (
            number INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            fingerprint BLOB NOT NULL,
            last_seq INTEGER NOT NULL,
            answer BLOB NOT NULL
        );
        CREATE TABLE store_state (
            last_seq INTEGER NOT NULL,
            service_seconds INTEGER NOT NULL
        );
        """
    )
    db.conn.create_function("row_crc", 10, row_crc, deterministic=True)
    db.executescript(
        """
        INSERT INTO samples
            SELECT seq, own, class_index, holdout, dtype, source, ts, 0, 0, NULL,
                row_crc(seq, own, class_index, holdout, dtype, source, ts, 0, NULL, features),
                features
            FROM (SELECT *, nullif(id, 's-' || seq) AS own FROM samples_1);
        INSERT INTO counts
            SELECT retired, class_index, source, holdout, count(*) FROM samples
            GROUP BY 1, 2, 3, 4;
        INSERT INTO store_state
            SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'samples_1'), 0), 0;
        DROP TABLE samples_1;
        CREATE UNIQUE INDEX samples_id ON samples(id) WHERE id IS NOT NULL AND retired IN (0, 2);
        CREATE INDEX samples_superseded ON samples(id) WHERE id IS NOT NULL AND retired = 1;
        CREATE INDEX samples_digest ON samples(digest) WHERE digest IS NOT NULL AND retired = 0;
        CREATE INDEX samples_retired ON samples(seq) WHERE retired <> 0;
        CREATE INDEX samples_to_learn ON samples(holdout)
            WHERE retired = 0 AND class_index IS NOT NULL;
        CREATE INDEX samples_by_class ON samples(class_index, seq, source) WHERE retired = 0;
        CREATE INDEX idempotency_by_seq ON idempotency(last_seq);
        CREATE INDEX samples_by_source ON samples(source) WHERE retired = 0;
        """
    )


@migrations()
def find_the_holdout_by_class(db: Database) -> None:
    """Of a million rows, the newest that score of each class are found in 3 ms instead of 300."""
    db.executescript(
        """
        CREATE INDEX samples_to_score ON samples(class_index) WHERE holdout = 1 AND retired = 0;
        """
    )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version's form.

    Raises:
        ValueError: A later version of ffedge has changed them.
    """
    database = Database(connection, execute_plugins=False)
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if not {migration.name for migration in migrations.applied(database)} <= known:
        raise ValueError("a later version of ffedge has changed its tables")
    migrations.apply(database)
