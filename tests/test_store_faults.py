"""When writing fails nothing is kept, the client is told, and the writer lives on."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing

import pytest

from daemon.errors import QueueFullError, StorageError, StoreError, StoreUnavailableError
from daemon.store.database import Database
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import WAIT_SECONDS, HeldWriter, added, open_store, query, sample
from tests.running import wait_for


@pytest.fixture
def gate():
    gate = HeldWriter()
    yield gate
    gate.open()  # a test that failed must not leave the writer held


def test_a_full_queue_refuses_and_recovers(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit, queue_samples=10)) as store:
        gate.hold(store)
        waiting = [store.add([sample(i)] * 5) for i in range(2)]
        with pytest.raises(QueueFullError, match=r"10 samples wait .* at most 10 may") as caught:
            store.add([sample(99, id="refused")])
        assert caught.value.retry_after_seconds
        record = store.record("note", 1, {"not": "a sample"})
        gate.open()
        for future in [*waiting, record]:
            future.result(WAIT_SECONDS)
        assert store.queue_depth == 0
        added(store, sample(7))
        assert query(tmp_path, "SELECT count(*) FROM samples") == [(12,)]


def test_a_request_larger_than_the_queue_is_not_told_to_retry_for_ever(tmp_path):
    """A stream may hold 10,000 lines, and the queue 4,096 samples by default."""
    with closing(open_store(tmp_path, queue_samples=10)) as store:
        assert len(added(store, *[sample(i) for i in range(11)])) == 11


REFUSE = """CREATE TRIGGER refuse BEFORE INSERT ON samples WHEN new.source = 'bad'
    BEGIN SELECT RAISE(ABORT, 'injected'); END"""


def test_a_failed_transaction_keeps_nothing_and_the_writer_lives_on(tmp_path, caplog):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1, "a"))
        query(tmp_path, REFUSE)
        failed = store.add([sample(2, "b"), sample(3, "c"), sample(4, "c", source="bad")])
        with pytest.raises(StorageError, match="send it again with the same id or Idempotency-Key"):
            failed.result(WAIT_SECONDS)
        assert "injected" in str([vars(record) for record in caplog.records])
        assert query(tmp_path, "SELECT seq FROM samples") == [(1,)]
        assert query(tmp_path, "SELECT name FROM classes") == [("a",)]
        assert (store.counts.samples, store.counts.last_seq) == (1, 1)
        assert store.queue_depth == 0
        # The places of b and c are free again: the cache was rolled back too.
        results = added(store, sample(5, "d"), sample(6, "e"))
        assert [r.seq for r in results] == [2, 3]
        names = query(tmp_path, "SELECT name FROM samples NATURAL JOIN classes ORDER BY seq")
        assert names == [("a",), ("d",), ("e",)]


def test_a_failed_transaction_fails_its_whole_group_and_no_other(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        query(tmp_path, REFUSE)
        first = gate.hold(store)
        group = [store.add([sample(2)]), store.add([sample(3, source="bad")])]
        gate.open()
        assert first.result(WAIT_SECONDS)
        for future in group:
            with pytest.raises(StorageError):
                future.result(WAIT_SECONDS)
        assert query(tmp_path, "SELECT count(*) FROM samples") == [(1,)]


@pytest.mark.parametrize(
    ("lose", "bring_back"),
    [
        ("ALTER TABLE samples RENAME TO lost", "ALTER TABLE lost RENAME TO samples"),
        ("DELETE FROM store_state", "INSERT INTO store_state VALUES (1, 0)"),
    ],
)
def test_a_lost_table_is_damage_until_it_is_back(tmp_path, lose, bring_back):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1))
        query(tmp_path, lose)

        def broken(connection: sqlite3.Connection) -> None:
            raise OSError(errno.EIO, "injected")

        if "DELETE" in lose:  # nothing asks for it before the database is opened anew
            with pytest.raises(StoreUnavailableError):
                store._writer.submit(broken).result(WAIT_SECONDS)
        else:
            with pytest.raises(StoreUnavailableError):
                added(store, sample(2, "new"))
        held = store.record_when_possible("note", 1, {})
        wait_for(lambda: refused(store) == "damaged", "the damage to be seen")
        wait_for(lambda: store._database.openings_failed, "an opening that fails", 30)
        assert refused(store) == "damaged"
        query(tmp_path, bring_back)
        wait_for(lambda: store.unavailable is None, "the table to be found", 60)
        held.result(WAIT_SECONDS)
        assert added(store, sample(3, "new"))[0].seq >= 2


def refused(store) -> str | None:
    return None if store.refuses is None else store.refuses.cause


def test_failures_again_and_again_are_damage(tmp_path):
    with closing(open_store(tmp_path)) as store:
        query(tmp_path, REFUSE)
        for _ in range(2):
            with pytest.raises(StorageError):
                added(store, sample(1, source="bad"))
        assert refused(store) is None
        with pytest.raises((StorageError, StoreUnavailableError)):
            added(store, sample(1, source="bad"))
        assert refused(store) == "damaged"
        wait_for(lambda: refused(store) is None, "the store to be tried again")
        assert added(store, sample(2))[0].seq == 1


def test_the_writer_lives_through_whatever_a_turn_of_its_loop_raises(tmp_path, monkeypatch):
    real = Database.committed
    broken = True

    def committed(self, seq) -> None:
        if broken:
            raise ValueError("injected")
        real(self, seq)

    monkeypatch.setattr(Database, "committed", committed)
    with closing(open_store(tmp_path)) as store:
        with pytest.raises(StoreUnavailableError):
            added(store, sample(1))
        held = store.record_when_possible("note", 1, {})
        assert refused(store) == "damaged"
        assert store.queue_depth == 0
        broken = False
        held.result(WAIT_SECONDS)
        assert added(store, sample(2))


def test_a_reader_that_keeps_the_log_is_named_and_waited_for(tmp_path, monkeypatch):
    real = sqlite3.connect
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1))
        other = real(tmp_path / DATABASE_NAME, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM samples").fetchone()
        added(store, sample(2))
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k | {"timeout": 0.1}))
    with closing(open_store(tmp_path)) as store:
        with pytest.raises(StoreUnavailableError, match="another program holds"):
            added(store, sample(3))
        assert refused(store) == "in_use"
        other.close()
        wait_for(lambda: refused(store) is None, "the reader to be gone", 30)
        assert added(store, sample(3))[0].seq == 3


def test_a_request_that_was_cancelled_does_not_stop_the_writer(tmp_path, gate):
    """asyncio cancels the future of a request that is given up at shutdown."""
    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        given_up, other = store.add([sample(2)]), store.add([sample(3)])
        given_up.cancel()
        gate.open()
        assert other.result(5)
        assert added(store, sample(4))


def test_a_database_that_cannot_be_wal_is_refused(tmp_path, monkeypatch):
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: real(":memory:", **more))
    with pytest.raises(StoreError, match="PRAGMA journal_mode is 'memory' and not 'wal'"):
        open_store(tmp_path)


def test_a_damaged_database_is_one_clear_error(tmp_path):
    (tmp_path / DATABASE_NAME).write_bytes(b"\x07garbage" * 1000)
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_store(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the database"):
        open_store(tmp_path / "file" / "var")
