"""When writing fails nothing is kept, the client is told, and the writer lives on."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from daemon.errors import QueueFullError, StorageError, StoreError
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import WAIT_SECONDS, HeldWriter, added, open_store, query, sample


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


def test_a_lost_table_is_a_storage_error_until_it_is_back(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1))
        query(tmp_path, "ALTER TABLE samples RENAME TO lost")
        for _ in range(2):
            with pytest.raises(StorageError):
                added(store, sample(2, "new"))
        query(tmp_path, "ALTER TABLE lost RENAME TO samples")
        assert added(store, sample(3, "new"))[0].seq == 2


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
