"""Labels that come later, corrections and withdrawals: durable, and harmless to repeat."""

from __future__ import annotations

from contextlib import closing

import pytest

from daemon.errors import (
    IdConflictError,
    LabelConflictError,
    TooManyClassesError,
    UnknownIdError,
)
from daemon.store import SampleReader
from daemon.store.row_check import CHECKED, is_sound
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import SPEC, WAIT_SECONDS, added, open_store, query, sample

WHOLE_ROWS = f"SELECT {CHECKED}, crc FROM samples"  # noqa: S608 - our own text


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        yield store


def label(store, sample_id, name, *, replace=False):
    return store.label(sample_id, name, replace=replace).result(WAIT_SECONDS)


def withdraw(store, sample_id):
    return store.withdraw(sample_id).result(WAIT_SECONDS)


def to_learn(folder) -> list[tuple[int, int]]:
    with closing(SampleReader(folder, SPEC)) as reader:
        return [(found.seq, found.class_index) for found in reader.training(0, 100)[0]]


@pytest.mark.parametrize("own", [None, "mine"])
def test_an_unlabelled_sample_is_learned_once_it_has_a_label(store, tmp_path, own):
    (kept,) = added(store, sample(1, None, id=own))
    name = own or "s-1"
    assert kept == (name, 1, False)
    assert to_learn(tmp_path) == []
    assert (store.counts.samples, store.counts.unlabelled, store.counts.to_learn) == (1, 1, 0)
    assert label(store, name, 7) == (name, 7, None, 2)
    assert to_learn(tmp_path) == [(2, 0)]
    assert (store.counts.samples, store.counts.unlabelled, store.counts.to_learn) == (1, 0, 1)
    assert label(store, name, "7") == (name, 7, 7, 2)  # a repeat; 7 and "7" are one class
    assert query(tmp_path, "SELECT count(*) FROM samples") == [(2,)]


def test_a_label_outlives_a_restart_and_so_does_its_repeat(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1, None), sample(2, None, id="x"))
        first = [label(store, name, "a") for name in ("s-1", "x")]
    with closing(open_store(tmp_path)) as store:
        assert [label(store, name, "a").seq for name in ("s-1", "x")] == [3, 4]
        assert [found.seq for found in first] == [3, 4]
        assert store.counts.samples == 2


@pytest.mark.parametrize("own", [None, "mine"])
def test_a_correction_takes_the_word_replace(store, tmp_path, own):
    ((name, _, _),) = added(store, sample(1, "a", id=own))
    with pytest.raises(LabelConflictError) as caught:
        label(store, name, "b")
    assert caught.value.field == "label"
    assert query(tmp_path, "SELECT name FROM classes") == [("a",)]
    assert to_learn(tmp_path) == [(1, 0)]
    assert label(store, name, "b", replace=True) == (name, "b", "a", 2)
    assert label(store, name, "a", replace=True) == (name, "a", "b", 3)
    assert to_learn(tmp_path) == [(3, 0)]
    rows = query(tmp_path, "SELECT retired, hex(features) FROM samples ORDER BY seq")
    assert rows == [(1, ""), (1, ""), (0, "01" * 6)]  # the features are there once
    assert all(is_sound(row) for row in query(tmp_path, WHOLE_ROWS))
    assert store.counts.retired == {1: 2}


def test_one_class_too_many_leaves_the_sample_as_it_was(store, tmp_path):
    added(store, *[sample(number, name) for number, name in enumerate("abc")])
    with pytest.raises(TooManyClassesError):
        label(store, "s-1", "d", replace=True)
    assert to_learn(tmp_path) == [(1, 0), (2, 1), (3, 2)]


def test_source_stamp_and_side_of_the_holdout_stay(tmp_path):
    columns = "SELECT source, ts, holdout, dtype FROM samples WHERE retired = {}"
    with closing(open_store(tmp_path, holdout_ratio=0.4)) as store:
        many = [sample(i, None, source=f"cam{i}", ts=str(i)) for i in range(40)]
        added(store, *many)
        for number in range(1, 41):
            label(store, f"s-{number}", "a")
        assert 5 < store.counts.holdout < 35
    before, after = query(tmp_path, columns.format(1)), query(tmp_path, columns.format(0))
    assert sorted(before) == sorted(after)


def test_a_withdrawal_takes_every_copy_of_the_features(store, tmp_path):
    added(store, sample(1, "a"), sample(2, "a", id="x"), sample(3, "a"))
    for name in ("s-1", "x"):
        label(store, name, "b", replace=True)
        first = withdraw(store, name)
        assert withdraw(store, name) == first
    assert to_learn(tmp_path) == [(3, 0)]
    kept = query(tmp_path, "SELECT seq FROM samples WHERE features != x''")
    assert kept == [(3,)]
    rows = query(tmp_path, WHOLE_ROWS)
    assert all(is_sound(row) for row in rows)
    assert (store.counts.samples, store.counts.retired) == (1, {1: 2, 2: 2})


@pytest.mark.parametrize("size", [100, 20_000])  # in a leaf, and in pages of its own
def test_what_was_withdrawn_is_not_in_the_file_any_more(tmp_path, size):
    secret = b"a face, and whose".ljust(size, b"#")
    with closing(open_store(tmp_path)) as store:
        added(store, sample(features=secret, id="x"), sample(2, "a"))
        withdraw(store, "x")
    assert b"a face" not in (tmp_path / DATABASE_NAME).read_bytes()
    assert b"####" not in (tmp_path / DATABASE_NAME).read_bytes()


def test_what_was_withdrawn_stays_so(store):
    added(store, sample(1, "a", id="x"))
    withdraw(store, "x")
    (refused,) = added(store, sample(1, "a", id="x"))
    assert isinstance(refused, IdConflictError)
    assert "withdrawn" in str(refused)
    with pytest.raises(UnknownIdError, match="withdrawn"):
        label(store, "x", "a", replace=True)


def test_a_late_repeat_of_what_was_sent_first_is_a_duplicate(store, tmp_path):
    first = sample(1, None, id="x")
    added(store, first)
    label(store, "x", "a")
    label(store, "x", "b", replace=True)
    assert (
        added(store, first, sample(1, "a", id="x"), sample(1, "b", id="x")) == [("x", 3, True)] * 3
    )
    (refused,) = added(store, sample(1, "c", id="x"))
    assert isinstance(refused, IdConflictError)
    assert to_learn(tmp_path) == [(3, 1)]


@pytest.mark.parametrize("name", ["x", "s-2", "s-01", "s-", "s-²", "s--1", "s-" + "9" * 30, "s-0"])
def test_an_id_that_nothing_has_is_unknown(store, name):
    added(store, sample(1, "a"))
    with pytest.raises(UnknownIdError):
        label(store, name, "a")
    with pytest.raises(UnknownIdError):
        withdraw(store, name)


def test_a_client_s_own_id_is_not_also_an_id_of_ours(store):
    added(store, sample(1, "a", id="x"))
    with pytest.raises(UnknownIdError):
        withdraw(store, "s-1")


def test_samples_and_their_labels_may_share_a_group(store, tmp_path):
    futures = [
        store.add([sample(1, None, id="x")]),
        store.label("x", "a", replace=False),
        store.label("x", "b", replace=True),
        store.add([sample(1, "b", id="x"), sample(2, "a")]),
        store.withdraw("s-4"),
    ]
    results = [future.result(WAIT_SECONDS) for future in futures]
    assert results[3] == [("x", 3, True), ("s-4", 4, False)]
    assert to_learn(tmp_path) == [(3, 1)]


def test_counts_in_the_table_are_the_rows(store, tmp_path):
    added(store, *[sample(i, "ab"[i % 2], source=f"cam{i % 3}") for i in range(20)])
    added(store, *[sample(i, None) for i in range(5)], sample(6, "c", source="once"))
    for number in (1, 2, 21, 22, 26):
        label(store, f"s-{number}", "b", replace=True)
    withdraw(store, "s-3")
    withdraw(store, "s-23")
    groups = """SELECT retired, ifnull(class_index, -1), source, holdout, count(*)
        FROM samples GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""
    table = "SELECT * FROM counts ORDER BY 1, 2, 3, 4"
    assert query(tmp_path, table) == query(tmp_path, groups)  # and nothing that is counted as 0
