"""The hold-out: the newest of each class, equally many, and versions compared on them, paired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.learning.holdout import Holdout, equal_shares
from daemon.serving.gate import ClassScores, Scores
from daemon.store import SampleReader
from engines import Label, PredictEngine, Prediction, Weights
from tests.daemon_fixtures import SPEC, added, network, open_store, sample


@given(
    st.lists(st.integers(0, 50), max_size=12),
    st.integers(1, 100),
)
def test_shares_are_equal_as_far_as_there_are_enough(counts: list[int], limit: int) -> None:
    shares = equal_shares(counts, limit)
    assert sum(shares) == min(limit, sum(counts))
    assert all(0 <= share <= count for share, count in zip(shares, counts, strict=True))
    # Who has fewer than another has all there are, but for the one place that does not divide.
    for share, count in zip(shares, counts, strict=True):
        assert share == count or share >= max(shares) - 1


def held(labels: list[str], folder: Path, limit: int, after_seq: int = 0) -> list[tuple[int, int]]:
    """Class place and seq of what a decision is made on; all that is stored scores."""
    with closing(open_store(folder, holdout_ratio=1.0)) as store:
        added(store, *(sample(i, label) for i, label in enumerate(labels)))
    with closing(SampleReader(folder, SPEC)) as reader:
        return [(s.class_index, s.seq) for s in Holdout(reader, limit).samples(after_seq)]


def test_it_is_the_newest_of_each_class_in_order_of_arrival(tmp_path: Path) -> None:
    found = held(["a", "b", "c"] * 20, tmp_path, 9)
    assert found == [((seq - 1) % 3, seq) for seq in range(52, 61)]


def test_a_flood_of_one_class_pushes_no_other_out(tmp_path: Path) -> None:
    found = held(["a", "b", "c"] * 20 + ["b"] * 500, tmp_path, 30)
    assert Counter(place for place, _ in found) == {0: 10, 1: 10, 2: 10}
    assert min(seq for place, seq in found if place == 1) == 551


def test_a_sorted_stream_hides_no_class(tmp_path: Path) -> None:
    found = held(["a"] * 100 + ["b"] * 100 + ["c"] * 100, tmp_path, 60)
    assert Counter(place for place, _ in found) == {0: 20, 1: 20, 2: 20}


def test_places_that_a_small_class_leaves_go_to_the_others(tmp_path: Path) -> None:
    found = held(["a"] * 100 + ["b"] * 4 + ["c"] * 100, tmp_path, 60)
    assert Counter(place for place, _ in found) == {0: 28, 1: 4, 2: 28}


def readings(folder: Path, limit: int, sent: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """First feature and seq of what a decision is made on; of what is sent, all scores."""
    with closing(open_store(folder, holdout_ratio=1.0)) as store:
        added(store, *(sample(value, label) for value, label in sent))
    with closing(SampleReader(folder, SPEC)) as reader:
        return [(s.features[0], s.seq) for s in Holdout(reader, limit).samples()]


ROUNDS = [(i, "abc"[i % 3]) for i in range(60)]


def test_copies_of_one_reading_count_once_and_are_looked_behind(tmp_path: Path) -> None:
    found = readings(tmp_path, 30, [*ROUNDS, *[(4, "b")] * 400])
    assert Counter("abc"[value % 3] for value, _ in found) == {"a": 10, "b": 10, "c": 10}
    assert len({value for value, _ in found}) == 30
    assert (4, 460) in found


def test_places_that_copies_leave_go_to_the_others(tmp_path: Path) -> None:
    found = readings(tmp_path, 30, [*[(200, "a"), (201, "a")] * 50, *ROUNDS[1::3], *ROUNDS[2::3]])
    assert Counter(value if value >= 200 else "bc"[value % 3 - 1] for value, _ in found) == {
        200: 1,
        201: 1,
        "b": 14,
        "c": 14,
    }


def test_of_nothing_but_copies_there_is_one(tmp_path: Path) -> None:
    """The gate then says that there are too few."""
    assert readings(tmp_path, 30, [(7, "a")] * 100) == [(7, 100)]


def test_a_reading_under_two_labels_counts_under_each(tmp_path: Path) -> None:
    assert readings(tmp_path, 30, [(7, "a"), (7, "b"), (7, "a")]) == [(7, 2), (7, 3)]


def test_copies_are_read_once_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(tmp_path, holdout_ratio=1.0)) as store:
        added(store, *(sample(value) for value in [1, 2, 3] + [4] * 97))
        with closing(SampleReader(tmp_path, SPEC)) as reader:
            read: list[int] = []
            rows = reader.samples
            monkeypatch.setattr(reader, "samples", lambda seqs: read.extend(seqs) or rows(seqs))
            holdout = Holdout(reader, 4)
            signs: list[None] = []
            found = holdout.samples(on_part=lambda: signs.append(None))
            assert [s.seq for s in found] == [1, 2, 3, 100]
            assert len(read) == 100 + 4
            assert len(signs) == 3  # of life, while rows behind the newest few are read
            added(store, sample(5))
            read.clear()
            assert [s.seq for s in holdout.samples()] == [2, 3, 100, 101]
            assert sorted(read) == [2, 3, 100, 101, 101]
            monkeypatch.setattr("daemon.learning.holdout._LOOKED_AT", 50)
            assert [s.seq for s in holdout.samples()] == [100, 101]
            # What is remembered of rows is of those that were looked at last.
            assert len(holdout._readings[0]) == 50


@pytest.mark.parametrize(("flood", "other"), ["ab", "ba"])
def test_a_flood_of_copies_in_one_class_takes_no_looks_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flood: str, other: str
) -> None:
    monkeypatch.setattr("daemon.learning.holdout._LOOKED_AT", 200)
    different = [(value, other) for value in range(30)]
    sent = [(30, "a"), (30, "b"), *different, *[(31, other)] * 60, *[(32, flood)] * 300]
    found = readings(tmp_path, 40, sent)
    assert sorted(value for value, _ in found) == [*range(33)]


def test_what_is_looked_at_is_known_the_next_time_and_shrinks_with_the_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(tmp_path, holdout_ratio=1.0)) as store:
        added(store, *(sample(value) for value in [*range(10), *[99] * 90]))
        with closing(SampleReader(tmp_path, SPEC)) as reader:
            asked: list[int] = []
            seqs = reader.holdout_seqs
            monkeypatch.setattr(
                reader, "holdout_seqs", lambda *of: asked.append(of[-1]) or seqs(*of)
            )
            holdout = Holdout(reader, 4)
            for _ in "12":
                assert len(holdout.samples()) == 4
            assert asked == [4, 16, 64, 100, 100]
            added(store, *(sample(value) for value in range(100, 110)))
            asked.clear()
            for _ in "12":
                assert len(holdout.samples()) == 4
            assert asked == [100, 8]


def test_nothing_before_a_change_is_taken_after_it(tmp_path: Path) -> None:
    found = held(["a", "b"] * 50, tmp_path, 40, after_seq=90)
    assert [seq for _, seq in found] == [*range(91, 101)]


def test_nothing_stored_is_nothing_to_compare_on(tmp_path: Path) -> None:
    assert held([], tmp_path, 10) == []


class Fixed(PredictEngine):
    """Answers one place, or by a table from the first feature."""

    def __init__(self, answer: dict[int, int]) -> None:
        self._answer = answer

    def predict(self, x: np.ndarray) -> Prediction:
        found = np.array([self._answer.get(int(row[0]), -1) for row in x])
        return Prediction(found, np.zeros((len(x), 3), np.float32))

    def latent(self, x: np.ndarray, units: int) -> object:
        raise NotImplementedError

    def close(self) -> None:
        pass


def version(number: int, *classes: Label) -> Weights:
    weights = network(1)
    return type(weights)(weights.spec, classes, weights.arrays, number)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[SampleReader]:
    """Six samples, number i of class abcabc, and class 7 that is known and never held out."""
    with closing(open_store(tmp_path, max_classes=4, holdout_ratio=1.0)) as store:
        added(store, *(sample(i, "abc"[i % 3]) for i in range(6)))
    with closing(open_store(tmp_path, max_classes=4, holdout_ratio=0.0)) as store:
        added(store, sample(9, 7))
    with closing(SampleReader(tmp_path, SPEC)) as reader:
        yield reader


def test_versions_are_paired_sample_by_sample_and_by_class(reader: SampleReader) -> None:
    answers = {
        # The incumbent has its classes in another order, as after the store was replaced.
        1: (version(1, "b", "a"), {0: 1, 1: 0, 2: 0, 3: 1, 4: 0, 5: 0}),  # a b - a b -
        2: (version(2, "a"), {0: 0}),  # a - - - - -
        3: (version(3, "a", "b", "c", 7), {0: 0, 1: 0, 2: 2, 3: 0, 4: 3, 5: 2}),  # a - c a - c
    }

    def open_version(weights: Weights) -> PredictEngine:
        return Fixed(answers[weights.version][1])

    versions = (answers[3][0], answers[1][0], [answers[2][0]])
    scores = Holdout(reader, 100).compare(*versions, open_version, lambda: None)
    assert scores == Scores(
        n=6,
        incumbent_correct=4,
        best_correct=1,
        candidate_correct=4,
        candidate_alone=2,
        incumbent_alone=2,
        classes=ClassScores(("a", "b", "c"), (2, 2, 2), (2, 2, 0), (1, 0, 0), (2, 0, 2)),
        missing=(7,),
    )


def test_the_counts_are_those_of_a_loop_over_single_samples(reader: SampleReader) -> None:
    """An oracle: every pair of tables of answers, drawn at random."""
    draw = np.random.default_rng(5)
    names = ("a", "b", "c")
    for _ in range(50):
        tables = [
            {i: int(place) for i, place in enumerate(draw.integers(-1, 3, 6))} for _ in "1234"
        ]
        candidate, incumbent, best, good = (version(n, *names) for n in (3, 1, 2, 4))

        def open_version(weights: Weights, tables: list[dict[int, int]] = tables) -> PredictEngine:
            return Fixed(tables[weights.version - 1])

        scores = Holdout(reader, 100).compare(
            candidate, incumbent, [best, good], open_version, lambda: None
        )
        was, *others, now = ([tables[n - 1][i] == i % 3 for i in range(6)] for n in (1, 2, 4, 3))
        assert scores.incumbent_correct == sum(was)
        assert scores.best_correct == max(map(sum, others))
        assert scores.candidate_correct == sum(now)
        assert scores.candidate_alone == sum(n and not w for n, w in zip(now, was, strict=True))
        assert scores.incumbent_alone == sum(w and not n for n, w in zip(now, was, strict=True))
        by_class = tuple(sum(now[i] for i in range(6) if i % 3 == place) for place in range(3))
        assert scores.classes.candidate_correct == by_class


def test_without_a_holdout_all_classes_are_missing(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with closing(SampleReader(tmp_path, SPEC)) as reader:
        weights = version(1, "a", "b")
        scores = Holdout(reader, 9).compare(weights, weights, [weights], lambda _: Fixed({}), int)
    assert scores == Scores(0, 0, 0, 0, missing=("a", "b"))
