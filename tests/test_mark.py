"""The high-water mark: what the database has lost is seen, told, and never numbered again."""

from __future__ import annotations

import shutil
from contextlib import closing

import pytest

from daemon.store.mark import MARK_NAME, MarkFile, read_mark
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import added, open_store, query, sample

SLOT_BYTES = 4096


def marked(path, *seqs: int) -> None:
    mark = MarkFile(path, 0)
    for seq in seqs:
        mark.write(seq)
    mark.close()


def spoil(path, slot: int) -> None:
    with path.open("r+b") as file:
        file.seek(slot * SLOT_BYTES + 9)
        file.write(b"\xff")


def test_the_newest_mark_is_read(tmp_path):
    path = tmp_path / MARK_NAME
    assert read_mark(path) == 0
    marked(path, 1, 2, 3)
    assert read_mark(path) == 3


@pytest.mark.parametrize("seqs", [(7, 8), (7, 8, 9)])
def test_a_torn_write_costs_one_commit_at_most(tmp_path, seqs):
    path = tmp_path / MARK_NAME
    for slot in (0, 1):
        marked(path, *seqs)
        spoil(path, slot)
        assert read_mark(path) in seqs[-2:]


@pytest.mark.parametrize("content", [b"", b"x" * 10_000, bytes(2 * SLOT_BYTES)])
def test_garbage_is_told_and_written_over(tmp_path, caplog, content):
    path = tmp_path / MARK_NAME
    path.write_bytes(content)
    with closing(open_store(tmp_path)) as store:
        assert "mark is garbled" in caplog.text
        added(store, sample())
        assert store.samples_lost == 0
    assert read_mark(path) == 1


def test_a_mark_stands_before_anybody_is_told(tmp_path):
    with closing(open_store(tmp_path)) as store:
        for number in range(1, 5):
            added(store, sample(number))
            assert read_mark(tmp_path / MARK_NAME) == number


def damaged_copy(store_folder, folder) -> None:
    """What a power cut would leave, with one bit flipped in the middle of the log."""
    shutil.copytree(store_folder, folder)
    log = folder / f"{DATABASE_NAME}-wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    (folder / f"{DATABASE_NAME}-shm").unlink()


def test_samples_that_a_damaged_log_has_dropped_are_counted_once(tmp_path, caplog):
    with closing(open_store(tmp_path / "a")) as store:
        for number in range(1, 11):
            added(store, sample(number))
        damaged_copy(tmp_path / "a", tmp_path / "b")
    found = query(tmp_path / "b", "SELECT count(*) FROM samples")[0][0]
    assert found < 10  # SQLite itself opens it without a word
    with closing(open_store(tmp_path / "b")) as store:
        assert store.samples_lost == 10 - found
        assert "acknowledged samples are lost" in caplog.text
        assert added(store, sample(99))[0].seq == 11
    with closing(open_store(tmp_path / "b")) as store:
        assert store.samples_lost == 10 - found
        assert added(store, sample(98))[0].seq == 12


def test_a_database_that_was_taken_away_is_a_loss_too(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1), sample(2))
    (tmp_path / DATABASE_NAME).unlink()
    for _ in range(2):
        with closing(open_store(tmp_path)) as store:
            assert (store.samples_lost, store.counts.last_seq) == (2, 2)


def test_a_mark_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / MARK_NAME).mkdir()
    with closing(open_store(tmp_path)) as store:
        assert added(store, sample())[0].seq == 1
    assert "mark cannot be" in caplog.text
