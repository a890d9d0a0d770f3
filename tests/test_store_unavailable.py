"""A store that cannot write says why, keeps what was acknowledged, and comes back by itself."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from daemon.errors import StorageError, StoreUnavailableError
from daemon.store import RequestKey, database
from daemon.store.availability import unavailable_after
from daemon.store.ballast import BALLAST_BYTES, BALLAST_NAME, Ballast
from tests.daemon_fixtures import WAIT_SECONDS, added, open_store, query, sample
from tests.running import wait_for
from tests.torture.filesystems import fill

BIG = 2000


def big(number: int):
    return sample(features=number.to_bytes(4, "little") * (BIG // 4))


def seqs(folder) -> list[int]:
    return [seq for (seq,) in query(folder, "SELECT seq FROM samples ORDER BY seq")]


def until_refused(store) -> list[int]:
    """Samples until the disk takes none; those that were acknowledged."""
    kept: list[int] = []
    for number in range(100_000):
        try:
            kept += [stored.seq for stored in added(store, *[big(number)] * 20)]
        except StoreUnavailableError:
            return kept
    raise AssertionError("the disk was never full")


def works(store) -> bool:
    try:
        added(store, sample())
    except StoreUnavailableError:
        return False
    return True


@pytest.mark.parametrize("disk", [("tmpfs", 8)], indirect=True)
def test_a_full_disk_refuses_keeps_what_it_has_and_comes_back(disk):
    with closing(open_store(disk.point)) as store:
        kept = until_refused(store)
        assert store.refuses is not None
        assert store.refuses.cause == "full"
        # What nobody would send again is held; what would be is refused.
        held = store.record_when_possible("note", 7, {"held": True})
        with pytest.raises(StoreUnavailableError, match="predictions go on"):
            store.record("note", 8, {})
        assert not held.done()
        disk.remount("size=16m")
        wait_for(lambda: works(store), "ingest to come back")
        held.result(WAIT_SECONDS)
        assert store.records("note", 5) == [{"held": True}]
        assert set(kept) <= set(seqs(disk.point))
        assert store.samples_lost == 0


@pytest.mark.parametrize("disk", [("tmpfs", 40)], indirect=True)
def test_a_full_disk_costs_the_ballast_first(disk):
    with closing(open_store(disk.point)) as store:
        assert (disk.point / BALLAST_NAME).stat().st_size == BALLAST_BYTES
        filler = fill(disk.point)
        kept = until_refused(store)
        wait_for(lambda: works(store), "the ballast to be given up")
        assert not (disk.point / BALLAST_NAME).exists()
        filler.unlink()
        store._database._tended = 0.0  # as if ten seconds had passed
        wait_for(lambda: works(store) and (disk.point / BALLAST_NAME).exists(), "a new ballast")
        assert store._database.short_of_room is False
        assert set(kept) <= set(seqs(disk.point))


@pytest.mark.parametrize("disk", [("tmpfs", 48)], indirect=True)
def test_on_a_full_disk_the_oldest_rows_make_room_for_new_ones(disk):
    """Nobody frees anything: the store lives on in what it has, for good."""
    with closing(open_store(disk.point)) as store:
        until_refused(store)
        wait_for(lambda: works(store), "the oldest rows to go")
        rounds, refused = 0, 0
        while rounds < 1000 and refused < 50:
            try:
                added(store, *[big(rounds)] * 20)
                rounds += 1
            except StoreUnavailableError:
                refused += 1
                time.sleep(0.05)
        assert rounds == 1000  # 40 MB more than there was room for
        assert store.removed.rows["bytes"] > 10_000
        found = seqs(disk.point)
        assert found == [*range(found[0], store.counts.last_seq + 1)]  # the newest, and all of them


class FailingConnection(sqlite3.Connection):
    """Fails once at a statement, in SQLite's words."""

    fails_at: str | None = None
    message = "disk I/O error"
    after_all = False  # what it says has failed is done

    def execute(self, statement, *arguments):
        if statement == FailingConnection.fails_at:
            FailingConnection.fails_at = None
            if self.after_all:
                super().execute(statement, *arguments)
            raise sqlite3.OperationalError(self.message)
        return super().execute(statement, *arguments)


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_an_io_error_refuses_its_group_and_the_database_is_opened_anew(
    tmp_path, monkeypatch, statement
):
    opened = []
    real, connect = database.open_writer, sqlite3.connect

    def open_writer(path):
        opened.append(path)
        monkeypatch.setattr(
            sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingConnection)
        )
        try:
            return real(path)
        finally:
            monkeypatch.setattr(sqlite3, "connect", connect)

    monkeypatch.setattr(database, "open_writer", open_writer)
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1))
        FailingConnection.fails_at = statement
        with pytest.raises(StoreUnavailableError) as caught:
            added(store, sample(2))
        assert caught.value.cause == "io_error"
        wait_for(lambda: works(store), "the store to come back")
        assert len(opened) == 2
        assert query(tmp_path, "SELECT features FROM samples") == [
            (bytes([n] * 6),) for n in (1, 0)
        ]


def test_what_was_refused_does_not_come_back_with_the_log(tmp_path, monkeypatch):
    """An fsync that fails may leave whole frames: who opens the database next finds them."""
    monkeypatch.setattr(FailingConnection, "after_all", True)
    real, connect = database.open_writer, sqlite3.connect

    def open_writer(path):
        with monkeypatch.context() as patch:
            patch.setattr(
                sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingConnection)
            )
            return real(path)

    monkeypatch.setattr(database, "open_writer", open_writer)
    held = threading.Event()
    with closing(open_store(tmp_path, on_commit=lambda *_: held.wait(WAIT_SECONDS))) as store:
        first = store.add([sample(1, "a"), sample(2, "a", id="mine"), sample(3, None)])
        first.result(WAIT_SECONDS)
        keyed = [sample(4, "b")]
        FailingConnection.fails_at = "COMMIT"
        group = [
            store.add([sample(5, "b"), sample(6, "b", id="new")]),
            store.add_once(keyed, RequestKey("k", b"f"), lambda outcomes: b"first"),
            store.label("mine", "c", replace=True),
            store.label("s-3", "c", replace=True),
        ]
        held.set()
        for refused in group:
            with pytest.raises(StoreUnavailableError):
                refused.result(WAIT_SECONDS)
        wait_for(lambda: store.unavailable is None, "the store to come back")
        # The labels were kept; so they are found, and the same again changes nothing.
        live = "SELECT seq, ifnull(id, 's-' || seq) FROM samples WHERE retired = 0 ORDER BY seq"
        assert query(tmp_path, live) == [(1, "s-1"), (7, "mine"), (8, "s-3")]
        assert store.counts.samples == 3
        (again,) = added(store, sample(5, "b"))
        assert again.seq == 9
        answer = store.add_once(keyed, RequestKey("k", b"f"), lambda outcomes: b"second")
        assert not answer.result(WAIT_SECONDS).replayed
        assert store.label("mine", "c", replace=True).result(WAIT_SECONDS).seq == 7
        counted = """SELECT retired, ifnull(class_index, -1), source, holdout, count(*)
            FROM samples GROUP BY 1, 2, 3, 4"""
        assert sorted(query(tmp_path, counted)) == sorted(query(tmp_path, "SELECT * FROM counts"))


def test_what_waiting_cannot_mend_is_no_cause(tmp_path):
    for error in (
        sqlite3.IntegrityError("UNIQUE constraint failed"),
        sqlite3.OperationalError("no such table: samples"),
        OSError(errno.EACCES, "Permission denied"),
        ValueError(),
    ):
        assert unavailable_after(error, tmp_path) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, ""), "full"),
        (OSError(errno.EROFS, ""), "read_only"),
        (OSError(errno.EIO, ""), "io_error"),
        (sqlite3.OperationalError("database or disk is full"), "full"),
        (sqlite3.DatabaseError("database disk image is malformed"), "damaged"),
        # The folder can be written to, so this is the disk's own.
        (sqlite3.OperationalError("disk I/O error"), "io_error"),
    ],
)
def test_causes(tmp_path, error, cause):
    found = unavailable_after(error, tmp_path)
    assert found is not None
    assert (found.cause, os.listdir(tmp_path)) == (cause, [])


@pytest.mark.parametrize("disk", [("tmpfs", 8)], indirect=True)
def test_records_held_at_the_end_are_told(disk, caplog):
    with closing(open_store(disk.point)) as store:
        until_refused(store)
        held = store.record_when_possible("note", 1, {})
        store.close()
        assert "records are lost" in caplog.text
        assert isinstance(held.exception(0), StorageError)


def test_a_ballast_takes_up_its_room_and_no_more_than_there_is(tmp_path):
    ballast = Ballast(tmp_path, 1 << 20)
    assert ballast.make()
    assert ballast.there
    assert (tmp_path / BALLAST_NAME).stat().st_blocks * 512 >= 1 << 20
    assert ballast.drop()
    assert not ballast.drop()
    (tmp_path / BALLAST_NAME).write_bytes(b"cut short")
    assert not ballast.there
    assert ballast.make()
    assert not Ballast(tmp_path, 1 << 60).make()
