"""The learner sees what was committed, in order, and never trains on what scores."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest

from daemon.store import Limits, SampleReader
from daemon.store.sample_rows import in_holdout
from tests.daemon_fixtures import SPEC, WAIT_SECONDS, open_store, query, sample
from tests.running import wait_for

COUNT = 200
HOLDOUT = [seq for seq in range(1, COUNT + 1) if in_holdout(sample(seq), 0.1)]
TRAINING = [seq for seq in range(1, COUNT + 1) if seq not in HOLDOUT]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with closing(open_store(folder)) as store:
        store.add([sample(i, "abc"[i % 3]) for i in range(1, COUNT + 1)]).result(WAIT_SECONDS)
        with closing(SampleReader(folder, SPEC)) as reader:
            yield reader


def seqs(samples) -> list[int]:
    return [sample.seq for sample in samples]


def test_training_goes_on_in_order_without_the_holdout(reader):
    assert len(HOLDOUT) > 10
    everything, through = reader.training(0, 1000)
    assert (seqs(everything), through) == (TRAINING, TRAINING[-1])
    some, through = reader.training(50, 10)
    assert seqs(some) == [s for s in TRAINING if s > 50][:10]
    assert through == some[-1].seq
    assert reader.training(COUNT, 10) == ([], COUNT)


def test_samples_are_read_by_their_numbers(reader):
    assert seqs(reader.samples(TRAINING[51:61])) == TRAINING[51:61]
    assert seqs(reader.samples([COUNT + 1, TRAINING[3]])) == [TRAINING[3]]


@pytest.mark.parametrize("how", ["withdrawn", "corrected"])
def test_what_is_emptied_between_its_number_and_its_row_is_passed_over(tmp_path, how):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        store.add([sample(i, "a") for i in (1, 2)]).result(WAIT_SECONDS)
        with closing(SampleReader(tmp_path, SPEC)) as reader:
            numbers_alone = reader._seqs

            def overtaken(where: str, *values: int) -> list[int]:
                found = numbers_alone(where, *values)
                if 1 in found and how == "withdrawn":
                    store.withdraw("s-1").result(WAIT_SECONDS)
                elif 1 in found:
                    store.label("s-1", "b", replace=True).result(WAIT_SECONDS)
                return found

            reader._seqs = overtaken
            found, _ = reader.training(0, 2)
            x, _ = reader.batch(found)
            assert [*x[:, 0]] == ([2] if how == "withdrawn" else [2, 1])


def test_what_is_not_to_be_learned_from_is_told_apart(reader):
    assert reader.departed([]) == []
    assert reader.departed(TRAINING) == []
    assert sorted(reader.departed([*TRAINING, *HOLDOUT, COUNT + 1])) == [*HOLDOUT, COUNT + 1]


def test_every_departure_is_counted_and_nothing_else(tmp_path):
    store = open_store(tmp_path, limits=Limits(max_samples=40))
    with closing(store), closing(SampleReader(tmp_path, SPEC)) as reader:
        store.add([sample(i) for i in range(30)]).result(WAIT_SECONDS)
        assert reader.departures() == 0
        store.withdraw("s-3").result(WAIT_SECONDS)
        assert reader.departures() == 1
        store.withdraw("s-3").result(WAIT_SECONDS)
        store.label("s-4", "b", replace=True).result(WAIT_SECONDS)
        assert reader.departures() == 2
        store.retire_damaged([5, 6]).result(WAIT_SECONDS)
        assert reader.departures() == 4
        store.add([sample(i) for i in range(30, 60)]).result(WAIT_SECONDS)
        # 61 rows have come, the corrected label's among them; 40 stay.
        wait_for(lambda: reader.departures() == 21 or None, "retention")
        assert query(tmp_path, "SELECT count(*) FROM samples WHERE retired = 0") == [(40,)]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("after", "limit"), [(0, 1000), (0, 3), (90, 1000), (90, 2), (COUNT, 5)])
def test_the_holdout_of_a_class_is_its_newest(reader, place, after, limit):
    of_class = [s for s in HOLDOUT if (s - 1) % 3 == place and s > after]
    assert reader.holdout_seqs(place, after, limit) == of_class[::-1][:limit]
    assert reader.holdout_count(place, after, limit) == len(of_class[:limit])


def test_the_holdout_of_a_class_is_found_from_an_index_alone(reader):
    """And so is each other question that is asked at a decision, or once a block."""
    asked: list[str] = []
    reader._connection.set_trace_callback(asked.append)
    reader.holdout_seqs(0, 0, 5)
    reader.holdout_count(0, 0, 5)
    reader.backlog(0)
    reader.departed([1, 2])
    reader._connection.set_trace_callback(None)
    assert len(asked) == 4
    for question in asked:
        plan = [row[3] for row in reader._connection.execute(f"EXPLAIN QUERY PLAN {question}")]
        used = [step for step in plan if "INDEX samples_to_" in step]
        assert len(used) == 1, plan


@pytest.mark.parametrize("after", [0, 1, 77, COUNT])
def test_backlog_counts_what_training_would_give(reader, after):
    assert reader.backlog(after) == len(reader.training(after, 1000)[0])


def test_a_batch_has_features_and_class_places(reader):
    samples, _ = reader.training(0, 7)
    x, places = reader.batch(samples)
    assert (x.shape, x.dtype, places.dtype) == ((7, 6), np.float32, np.int64)
    np.testing.assert_array_equal(x[:, 0], [s.seq for s in samples])
    # The first sample has label b, so place 0 is b, 1 is c and 2 is a.
    np.testing.assert_array_equal(places, [(s.seq - 1) % 3 for s in samples])
    assert reader.labels() == ("b", "c", "a")


def test_it_cannot_write(reader):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM samples")


def test_only_what_is_committed_is_seen(tmp_path):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        inserted, proceed = threading.Event(), threading.Event()

        def insert_and_hold(connection) -> None:
            store._rows.insert(connection, [sample(1, "new")])
            store._rows.settle(connection)
            inserted.set()
            assert proceed.wait(WAIT_SECONDS)

        store.add([sample(0)]).result(WAIT_SECONDS)
        with closing(SampleReader(tmp_path, SPEC)) as reader:
            held = store._writer.submit(insert_and_hold, samples=1)
            assert inserted.wait(WAIT_SECONDS)
            try:
                assert (reader.backlog(0), reader.labels()) == (1, ("a",))
            finally:
                proceed.set()
            held.result(WAIT_SECONDS)
            assert (reader.backlog(0), reader.labels()) == (2, ("a", "new"))


def test_reads_let_go_so_that_the_log_can_be_checkpointed(tmp_path):
    with closing(open_store(tmp_path)) as store, closing(SampleReader(tmp_path, SPEC)) as reader:
        store.add([sample(i) for i in range(20)]).result(WAIT_SECONDS)
        reader.training(0, 1)
        reader.departed([1])
        reader.departures()
        reader.holdout_seqs(0, 0, 1)
        reader.labels()
        store.add([sample(i) for i in range(20)]).result(WAIT_SECONDS)
        busy, in_log, checkpointed = query(tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")[0]
        assert (busy, in_log, checkpointed) == (0, 0, 0)
