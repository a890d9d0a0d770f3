"""Acknowledged means on disk: everything here is checked through a second connection."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from daemon.errors import (
    IdConflictError,
    StorageError,
    TooManyClassesError,
)
from daemon.store import SampleReader
from daemon.store import sample_store as sample_store_module
from daemon.store.sample_rows import in_holdout
from daemon.store.writer import GROUP_SAMPLES
from tests.daemon_fixtures import SPEC, WAIT_SECONDS, HeldWriter, added, open_store, query, sample
from tests.running import wait_for


@pytest.fixture
def gate():
    gate = HeldWriter()
    yield gate
    gate.open()  # a test that failed must not leave the writer held


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path)) as store:
        yield store


def test_acknowledged_means_that_another_connection_finds_it(store, tmp_path):
    for number in range(1, 6):
        (stored,) = added(store, sample(number, "a", id=f"c-{number}"))
        assert (stored.id, stored.seq, stored.duplicate) == (f"c-{number}", number, False)
        rows = query(tmp_path, "SELECT id, features, dtype, source FROM samples ORDER BY seq")
        assert rows[-1] == (f"c-{number}", bytes([number] * 6), "uint8", "test")
        assert len(rows) == number


def test_seq_is_the_order_of_arrival(store, tmp_path):
    futures = [store.add([sample(i), sample(i + 100)]) for i in range(50)]
    seqs = [stored.seq for f in futures for stored in f.result(WAIT_SECONDS)]
    assert seqs == [*range(1, 101)]
    features = [row[0][0] for row in query(tmp_path, "SELECT features FROM samples ORDER BY seq")]
    assert features == [value for i in range(50) for value in (i, i + 100)]


def test_what_waits_while_one_group_is_written_becomes_the_next(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        first = gate.hold(store)
        rest = [store.add([sample(i), sample(i)]) for i in range(40)]
        assert store.queue_depth == 80
        gate.open()
        assert len(first.result(WAIT_SECONDS)) == 1
        assert [len(f.result(WAIT_SECONDS)) for f in rest] == [2] * 40
    assert gate.commits == [1, 80]


def test_a_group_is_bounded(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit, queue_samples=5000)) as store:
        gate.hold(store)
        last = [store.add([sample(i)]) for i in range(GROUP_SAMPLES + 10)][-1]
        gate.open()
        last.result(WAIT_SECONDS)
    assert gate.commits == [1, GROUP_SAMPLES, 10]


def test_a_sample_without_id_gets_one(store):
    first, second = added(store, sample(1), sample(1))
    assert (first.id, second.id) == ("s-1", "s-2")


def test_equal_content_under_one_id_is_a_duplicate(store, tmp_path):
    (first,) = added(store, sample(1, 3, id="x"))
    again = added(store, sample(1, "3", id="x"), sample(1, 3, id="x", source="other"))
    assert [(s.id, s.seq, s.duplicate) for s in again] == [("x", first.seq, True)] * 2
    assert query(tmp_path, "SELECT count(*) FROM samples") == [(1,)]
    assert store.counts.samples == 1


@pytest.mark.parametrize(
    "other", [sample(2, 3, id="x"), sample(1, 4, id="x"), sample(1, 3, id="x", dtype="float32")]
)
def test_other_content_under_one_id_is_a_conflict(store, tmp_path, other):
    added(store, sample(1, 3, id="x"))
    refused, kept = added(store, other, sample(9, 3))
    assert isinstance(refused, IdConflictError)
    assert (refused.field, kept.seq) == ("id", 2)
    assert query(tmp_path, "SELECT features FROM samples WHERE id = 'x'") == [(bytes([1] * 6),)]
    assert query(tmp_path, "SELECT name FROM classes") == [("3",)]


def test_an_id_twice_in_one_batch(store):
    first, again, other = added(store, sample(1, id="x"), sample(1, id="x"), sample(2, id="x"))
    assert (first.duplicate, again.duplicate) == (False, True)
    assert isinstance(other, IdConflictError)


def test_class_places_go_by_first_appearance(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(store, *[sample(label=label) for label in (3, "dog", "3", 3, "dog")])
        places = query(tmp_path, "SELECT class_index FROM samples ORDER BY seq")
        assert places == [(0,), (1,), (0,), (0,), (1,)]
    with closing(open_store(tmp_path)) as store:
        added(store, sample(label="3"), sample(label="new"))
        places = query(tmp_path, "SELECT class_index FROM samples ORDER BY seq")
        assert places[-2:] == [(0,), (2,)]
    with closing(SampleReader(tmp_path, SPEC)) as reader:
        assert reader.labels() == (3, "dog", "new")


def test_one_class_too_many_is_refused_and_the_rest_of_the_batch_kept(store):
    results = added(store, *[sample(label=label) for label in ("a", "b", "c", "d", "a")])
    assert [type(r).__name__ == "Stored" for r in results] == [True, True, True, False, True]
    assert isinstance(results[3], TooManyClassesError)
    assert results[3].field == "label"
    assert "raise model.max_classes" in str(results[3])
    assert [r.seq for r in results if r is not results[3]] == [1, 2, 3, 4]


def test_counts_follow_the_commits(store):
    assert (store.counts.samples, store.counts.holdout, store.counts.last_seq) == (0, 0, 0)
    added(store, *[sample(i) for i in range(50)])
    expected = sum(in_holdout(sample(i), 0.1) for i in range(50))
    assert (store.counts.samples, store.counts.holdout) == (50, expected)


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_the_holdout_share_is_near_its_ratio(ratio):
    contents = (sample(features=number.to_bytes(6, "little")) for number in range(10_000))
    share = sum(in_holdout(content, ratio) for content in contents) / 10_000
    assert share == pytest.approx(ratio, abs=0.02)  # 4 standard deviations


def test_equal_readings_are_on_one_side_whoever_sends_them(store, tmp_path):
    """A client that repeats itself without an id must not carry a trained sample over."""
    added(store, *[sample(i) for i in range(200)], *[sample(i, source="again") for i in range(200)])
    sides = query(tmp_path, "SELECT count(DISTINCT holdout) FROM samples GROUP BY features")
    assert len(sides) == 200
    assert set(sides) == {(1,)}
    assert 0 < store.counts.holdout < 400


def test_holdout_and_order_outlive_a_restart(tmp_path):
    rows = "SELECT seq, holdout FROM samples ORDER BY seq"
    with closing(open_store(tmp_path)) as store:
        added(store, *[sample(i) for i in range(100)])
        before, counts = query(tmp_path, rows), store.counts
    with closing(open_store(tmp_path)) as store:
        assert store.counts == counts
        assert added(store, sample(1))[0].seq == 101
        assert query(tmp_path, rows)[:100] == before


def test_close_writes_what_waits_and_refuses_what_comes_later(tmp_path, gate):
    store = open_store(tmp_path, on_commit=gate.on_commit)
    gate.hold(store)
    waiting = [store.add([sample(i)]) for i in range(20)]
    closers = [threading.Thread(target=store.close) for _ in range(3)]
    for closer in closers:
        closer.start()

    def refused() -> bool:
        try:
            waiting.append(store.add([sample(0)]))
        except StorageError:
            return True
        return False

    wait_for(refused, "the store to refuse")
    gate.open()
    for closer in closers:
        closer.join(WAIT_SECONDS)
        assert not closer.is_alive()
    assert all(future.result(0) for future in waiting)
    assert query(tmp_path, "SELECT count(*) FROM samples") == [(1 + len(waiting),)]
    store.close()
    with pytest.raises(StorageError, match="stopping"):
        store.add([sample(0)])


def test_records_are_kept_by_kind_newest_first(tmp_path):
    with closing(open_store(tmp_path)) as store:
        for number in (1, 3, 2):
            store.record("job", number, {"n": number, "text": "é"})
        store.record("other", 9, {})
        store.record("job", 1, {"n": "again"}).result(WAIT_SECONDS)
        expected = [{"n": 3, "text": "é"}, {"n": 2, "text": "é"}, {"n": "again"}]
        assert store.records("job", 10) == expected
    with closing(open_store(tmp_path)) as store:
        assert store.records("job", 2) == expected[:2]


def test_the_newest_records_of_a_kind_are_kept_however_far_apart_their_numbers(store, monkeypatch):
    monkeypatch.setattr(sample_store_module, "_RECORDS_KEPT", 2)
    for number in (1000, 50, 90_000, 70_000):
        store.record("drift", number, {"n": number}).result(WAIT_SECONDS)
    assert [record["n"] for record in store.records("drift", 10)] == [90_000, 70_000]


def test_what_was_recorded_last_is_kept_where_numbers_begin_again(store, monkeypatch):
    """As decisions do once the versions were moved away."""
    monkeypatch.setattr(sample_store_module, "_RECORDS_KEPT", 3)
    for number in (10, 11, 12, 10, 2, 3):  # a job that is written again is no old one
        store.record("job", number, {"n": number}).result(WAIT_SECONDS)
        assert store.last_recorded(["job"], 1) == [{"n": number}]
    assert [record["n"] for record in store.last_recorded(["job"], 9)] == [3, 2, 10]


def test_the_pragmas_that_the_promise_rests_on(store, tmp_path):
    assert query(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    # `synchronous` belongs to a connection, so the writer's own is asked.
    work = store._writer.submit(lambda own: own.execute("PRAGMA synchronous").fetchone())
    assert work.result(WAIT_SECONDS) == (2,)
