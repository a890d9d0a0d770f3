"""A database of the first version opens, with all that was in it, or stays as it was."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlite_utils import Database

from daemon.errors import StoreError
from daemon.learning.holdout import Holdout
from daemon.store import SampleReader
from daemon.store.connections import has_wal_reset_bug
from daemon.store.schema import DATABASE_NAME, migrations
from tests.daemon_fixtures import SPEC, added, open_store, query, sample

ROWS = [
    (1, "s-1", 0, 0, "uint8", bytes([1] * 6), "cam0", None),
    (2, "own", 1, 0, "uint8", bytes([2] * 6), "cam1", "2026-01-01"),
    (3, "s-4", 0, 1, "float32", bytes(24), "cam0", "3.5"),  # no such id was given out for it
    (7, "s-7", 1, 0, "uint8", bytes([7] * 6), "", None),
]


@pytest.fixture
def version_1(tmp_path):
    """A folder with a database as the first version made and filled it."""
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        database = Database(connection, execute_plugins=False)
        migrations.apply(database, stop_before="check_rows_and_count_them")
        connection.execute("INSERT INTO classes VALUES (0, 'a', 0), (1, '7', 1)")
        for row in [*ROWS, (9, "s-9", *ROWS[0][2:])]:
            connection.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("DELETE FROM samples WHERE seq = 9")
        connection.execute("INSERT INTO records VALUES ('job', 4, '{}')")
    return tmp_path


def test_rows_classes_counts_and_records_are_all_there(version_1):
    open_store(version_1).close()
    new = query(
        version_1,
        """SELECT seq, id, class_index, holdout, dtype, features, source, ts, stored_at, retired
            FROM samples ORDER BY seq""",
    )
    ids = [None, "own", "s-4", None]
    assert new == [(row[0], name, *row[2:], 0, 0) for row, name in zip(ROWS, ids, strict=True)]
    with closing(open_store(version_1)) as store:
        counts = store.counts
        assert (counts.samples, counts.holdout, counts.to_learn) == (4, 1, 3)
        assert counts.last_seq == 9
        assert store.records("job", 5) == [{}]
        assert store.classes == 2
        repeat = sample(2, "7", id="own")
        assert added(store, repeat, sample(5)) == [("own", 2, True), ("s-10", 10, False)]
        assert store.label("s-7", "a", replace=True).result(10).previous_label == 7
    with closing(SampleReader(version_1, SPEC)) as reader:
        assert [found.seq for found in reader.training(0, 10)[0]] == [1, 2, 10, 11]
        assert [found.seq for found in Holdout(reader, 10).samples()] == [3]


def test_a_migration_that_fails_has_changed_nothing(version_1):
    query(version_1, "CREATE TABLE samples_1 (x)")  # in its way
    before = query(version_1, "SELECT * FROM sqlite_master ORDER BY name")
    with pytest.raises(StoreError, match="samples_1"):
        open_store(version_1)
    assert query(version_1, "SELECT * FROM samples ORDER BY seq") == ROWS
    assert query(version_1, "SELECT * FROM sqlite_master ORDER BY name") == before
    query(version_1, "DROP TABLE samples_1")
    with closing(open_store(version_1)) as store:
        assert store.counts.samples == 4


def test_migrations_run_once(tmp_path):
    for _ in range(2):
        open_store(tmp_path).close()
        assert query(tmp_path, "SELECT count(*) FROM _sqlite_migrations") == [(3,)]


def test_tables_of_a_later_version_are_one_clear_error(tmp_path):
    open_store(tmp_path).close()
    query(tmp_path, "INSERT INTO _sqlite_migrations VALUES (99, 'ffedge', 'of_tomorrow', '')")
    with pytest.raises(StoreError, match="a later version of ffedge has changed its tables"):
        open_store(tmp_path)


def test_what_lies_in_the_log_is_in_the_database_before_anything_is_taken(tmp_path):
    """As after a crash: the last one that closes would have emptied the log."""
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1))
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal"):
            (crashed / name).write_bytes((tmp_path / name).read_bytes())
    log = crashed / f"{DATABASE_NAME}-wal"
    assert log.stat().st_size > 0
    with closing(open_store(crashed)) as store:
        assert log.stat().st_size == 0
        assert store.counts.samples == 1


def test_the_version_of_sqlite_is_logged(tmp_path, caplog):
    with caplog.at_level("INFO"):
        open_store(tmp_path).close()
    (opened,) = [record for record in caplog.records if record.message == "database opened"]
    assert vars(opened)["sqlite"] == sqlite3.sqlite_version
    warned = any("it alone checkpoints" in record.message for record in caplog.records)
    assert warned == has_wal_reset_bug(sqlite3.sqlite_version_info)


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((4, 0, 0), False),
    ],
)
def test_which_versions_have_the_fault_of_the_log(version, bug):
    assert has_wal_reset_bug(version) == bug
