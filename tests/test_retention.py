"""Old rows go, oldest first, in the background; what is new is taken all the while."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

import pytest

from daemon.errors import StoreUnavailableError
from daemon.store import Limits, RequestKey, SampleReader
from daemon.store.retention import Retention
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import SPEC, WAIT_SECONDS, added, open_store, query, sample
from tests.running import wait_for

DAY = 86400


def seqs(folder, where: str = "TRUE") -> list[int]:
    rows = query(folder, f"SELECT seq FROM samples WHERE {where} ORDER BY seq")  # noqa: S608
    return [seq for (seq,) in rows]


def spoil_first_leaf(path) -> None:
    """One bit of a page's type: SQLite calls all rows in it malformed."""
    with closing(sqlite3.connect(path)) as connection:
        master = "SELECT rootpage FROM sqlite_master WHERE name = 'samples'"
        (root,) = connection.execute(master).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    page = (root - 1) * size
    while content[page] == 5:  # an inner page: its first cell points to its first child
        cell = page + int.from_bytes(content[page + 12 : page + 14], "big")
        page = (int.from_bytes(content[cell : cell + 4], "big") - 1) * size
    assert content[page] == 13
    content[page] ^= 4
    path.write_bytes(content)


def assert_counts_are_right(folder, store) -> None:
    rows = query(
        folder,
        """SELECT retired, ifnull(class_index, -1), source, holdout, count(*) FROM samples
            GROUP BY 1, 2, 3, 4""",
    )
    assert sorted(rows) == sorted(query(folder, "SELECT * FROM counts"))
    assert store.counts.samples == len(seqs(folder, "retired = 0"))


def test_the_newest_samples_are_kept(tmp_path):
    with closing(open_store(tmp_path, limits=Limits(max_samples=100))) as store:
        for start in range(0, 3000, 200):
            added(store, *[sample(start + i, "ab"[i % 2]) for i in range(200)])
        wait_for(lambda: store.counts.samples == 100, "the oldest to go")
        assert seqs(tmp_path) == [*range(2901, 3001)]
        assert store.removed.rows["rows"] == 2900
        assert_counts_are_right(tmp_path, store)
        assert added(store, sample())[0].seq == 3001


def test_each_class_keeps_its_newest(tmp_path):
    limits = Limits(max_class_samples=10)
    with closing(open_store(tmp_path, limits=limits, holdout_ratio=0.3)) as store:
        added(store, *[sample(i, "a") for i in range(5)])
        added(store, *[sample(i, "b", id=f"b{i}") for i in range(40)], sample(1, None))
        store.label("b0", "c", replace=True).result(WAIT_SECONDS)
        store.label("s-46", "b", replace=True).result(WAIT_SECONDS)
        wait_for(lambda: store.removed.rows["class"] == 30, "the oldest of one class to go")
        assert seqs(tmp_path, "class_index = 0") == [1, 2, 3, 4, 5]
        live = "retired = 0 AND class_index = 1"
        assert seqs(tmp_path, live) == [*range(37, 46), 48]
        assert_counts_are_right(tmp_path, store)


def test_what_a_sample_was_before_goes_with_it(tmp_path):
    with closing(open_store(tmp_path, limits=Limits(max_class_samples=10))) as store:
        added(store, sample(0, None), sample(1, "b", id="mine"))
        store.label("s-1", "a", replace=False).result(WAIT_SECONDS)
        store.label("mine", "a", replace=True).result(WAIT_SECONDS)
        assert seqs(tmp_path, "retired = 1") == [1, 2]
        added(store, *[sample(i, "a") for i in range(10)])
        wait_for(lambda: seqs(tmp_path) == [*range(5, 15)], "the rows of both to go")
        assert_counts_are_right(tmp_path, store)


def test_keys_go_with_the_rows(tmp_path):
    with closing(open_store(tmp_path, limits=Limits(max_samples=10))) as store:
        for number in range(100):
            request = RequestKey(f"k{number}", b"f")
            store.add_once([sample(number)], request, lambda outcomes: b"ok").result(WAIT_SECONDS)
        wait_for(lambda: store.counts.samples == 10, "the oldest to go")
        keys = [key for (key,) in query(tmp_path, "SELECT key FROM idempotency ORDER BY number")]
        assert keys == [f"k{number}" for number in range(90, 100)]


def test_a_key_stays_as_long_as_its_rows(tmp_path):
    """However many rows of before it go, and whichever request brought them."""
    with closing(open_store(tmp_path, limits=Limits(max_samples=10), queue_samples=5000)) as store:
        store.add([sample(number) for number in range(3000)])
        sent = [sample(7)]
        first = store.add_once(sent, RequestKey("mine", b"f"), lambda outcomes: b"ok")
        assert not first.result(WAIT_SECONDS).replayed
        wait_for(lambda: store.counts.samples == 10, "the oldest to go")
        again = store.add_once(sent, RequestKey("mine", b"f"), lambda outcomes: b"ok")
        assert again.result(WAIT_SECONDS).replayed


def test_age_is_time_of_service(tmp_path, monkeypatch):
    limits = Limits(max_age_seconds=2 * DAY)
    with closing(open_store(tmp_path, limits=limits)) as store:
        added(store, *[sample(i) for i in range(5)])
    # Ten years by the clock, back to 1970: that is no age.
    for moment in (time.time() + 10 * 365 * DAY, 0.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        with closing(open_store(tmp_path, limits=limits)) as store:
            added(store, sample(7))
            wait_for(lambda store=store: store._writer._settled, "the limits to be looked at")
            assert not any(store.removed.rows.values())
    query(tmp_path, "UPDATE store_state SET service_seconds = 3 * 86400")
    with closing(open_store(tmp_path, limits=limits)) as store:
        (new,) = added(store, sample(8))
        wait_for(lambda: store.removed.rows["age"] == 7, "the old ones to go")
        assert seqs(tmp_path) == [new.seq]
        assert_counts_are_right(tmp_path, store)


def test_the_quota_is_kept_while_samples_stream_in(tmp_path):
    quota = 8 << 20
    with closing(open_store(tmp_path, limits=Limits(max_bytes=quota))) as store:
        for _ in range(40):
            added(store, *[sample(features=os.urandom(2000)) for _ in range(200)])
        size = (tmp_path / DATABASE_NAME).stat().st_size
        assert size <= 0.95 * quota
        assert store.removed.rows["bytes"] > 3000
        assert store.counts.samples > 1000
        assert_counts_are_right(tmp_path, store)


def test_a_quota_that_cannot_be_kept_refuses_samples_and_takes_records(tmp_path, monkeypatch):
    monkeypatch.setattr(Retention, "step", lambda self, connection, reason: 0)
    with closing(open_store(tmp_path, limits=Limits(max_bytes=1 << 20))) as store:
        added(store, *[sample(features=os.urandom(2000)) for _ in range(500)])
        wait_for(lambda: store.refuses, "the quota to be seen")
        with pytest.raises(StoreUnavailableError, match="max_bytes") as caught:
            store.add([sample()])
        assert caught.value.body()["cause"] == "quota"
        assert store.unavailable is None
        store.record("note", 1, {}).result(WAIT_SECONDS)
        assert store.withdraw("s-1").result(WAIT_SECONDS).seq == 1  # which makes room


def test_a_row_whose_columns_are_damaged_goes_too(tmp_path, caplog):
    """An index does not have the row as it is now: SQLite calls that malformed."""
    with closing(open_store(tmp_path)) as store:
        added(store, *[sample(i, source="turned") for i in range(10)])
    path = tmp_path / DATABASE_NAME
    content = path.read_bytes()
    path.write_bytes(content.replace(b"uint8turned", b"uint8burned", 1))
    with closing(open_store(tmp_path, limits=Limits(max_samples=1))) as store:
        added(store, sample(1))
        wait_for(lambda: store.counts.samples == 1, "the old rows to go")
        assert store.unavailable is None
    assert "indexes are made anew" in caplog.text
    assert seqs(tmp_path) == [11]


def test_retired_rows_are_bounded_and_take_no_sample_with_them(tmp_path):
    """Whoever flips one label for ever costs neither the disk nor the samples of others."""
    with closing(open_store(tmp_path, limits=Limits(max_samples=10), holdout_ratio=0.0)) as store:
        added(store, *[sample(i, id=f"k{i}") for i in range(5)])
        for flip in range(200):
            last = store.label("k0", "ab"[(flip + 1) % 2], replace=True)
        last.result(WAIT_SECONDS)
        wait_for(lambda: sum(store.counts.retired.values()) == 10, "the oldest retired rows to go")
        assert seqs(tmp_path, "retired = 0") == [2, 3, 4, 5, 205]
        assert seqs(tmp_path, "retired = 1") == [*range(195, 205)]
        assert store.removed.rows["retired"] == 190
        assert_counts_are_right(tmp_path, store)


def test_a_malformed_page_costs_no_new_sample(tmp_path, caplog):
    with closing(open_store(tmp_path)) as store:
        added(store, *[sample(i) for i in range(500)])
    spoil_first_leaf(tmp_path / DATABASE_NAME)
    for limits in (Limits(max_samples=400), Limits(max_age_seconds=1e-9)):
        caplog.clear()
        with closing(open_store(tmp_path, limits=limits)) as store:
            before = store.counts.samples
            for number in range(300):
                added(store, sample(number))
            wait_for(lambda: "no more rows go" in caplog.text, "retention to be set off")
            added(store, sample(1))
            assert store.unavailable is None
            assert store.counts.samples == before + 301
    told: list[int] = []
    with closing(SampleReader(tmp_path, SPEC, told.append)) as reader:
        found, through = reader.training(0, 5000)
        assert through > 1000
        assert 500 < len(found) < 1102
        assert found[0].seq > 1
        assert told == []
