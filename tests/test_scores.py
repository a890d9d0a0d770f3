"""The scores of a stream, each held against a plain loop over single samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.learning.scores import (
    CLASS_SAMPLES,
    FADING_FACTOR,
    RECENT_SAMPLES,
    StreamScores,
    is_score,
)
from engines.tensor_file import pack, unpack

BLOCKS = st.lists(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), max_size=400), max_size=6
)


def scored(blocks: list[list[tuple[int, int]]]) -> StreamScores:
    scores = StreamScores()
    for block in blocks:
        answers = np.array(block, dtype=np.int64).reshape(-1, 2)
        scores.add(answers[:, 0], answers[:, 1])
    return scores


def all_of(scores: StreamScores, places: int = 5) -> list[float | None]:
    by_class = [scores.class_accuracy(place) for place in range(places)]
    overall = [scores.accuracy, scores.recent_accuracy, scores.faded_accuracy, scores.forgetting]
    return [*overall, *by_class]


def test_before_the_first_sample_there_is_no_score() -> None:
    for scores in (StreamScores(), scored([[]])):
        assert all_of(scores) == [None] * 9


def test_all_wrong_is_a_score_and_not_none() -> None:
    scores = scored([[(1, 0), (-1, 0), (2, 0)]])
    assert all_of(scores, 1) == [0.0, 0.0, 0.0, None, 0.0]


@given(BLOCKS)
def test_they_are_those_of_a_loop_over_single_samples(blocks) -> None:
    scores = scored(blocks)
    stream = [answer for block in blocks for answer in block]
    results = [found == label for found, label in stream]
    assert (scores.total, scores.correct) == (len(results), sum(results))
    assert scores.recent.tolist() == results[-RECENT_SAMPLES:]
    for place in range(4):
        of_class = [found == label for found, label in stream if label == place]
        newest = of_class[-CLASS_SAMPLES:]
        expected = sum(newest) / len(newest) if newest else None
        assert scores.class_accuracy(place) == (
            None if expected is None else pytest.approx(expected)
        )
    if not results:
        return
    assert scores.accuracy == sum(results) / len(results)
    assert scores.recent_accuracy == np.mean(results[-RECENT_SAMPLES:])
    weights = [FADING_FACTOR ** (len(results) - 1 - i) for i in range(len(results))]
    faded = math.fsum(w for w, hit in zip(weights, results, strict=True) if hit)
    assert scores.faded_accuracy == pytest.approx(faded / math.fsum(weights), rel=1e-9)


@given(BLOCKS, st.integers(1, 50))
def test_where_blocks_end_makes_no_difference_to_a_bit(blocks, size) -> None:
    stream = [answer for block in blocks for answer in block]
    others = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert all_of(scored(blocks)) == all_of(scored(others))


def test_what_is_new_counts_and_what_is_old_is_forgotten() -> None:
    wrong, right = [(1, 0)] * 5000, [(0, 0)] * RECENT_SAMPLES
    scores = scored([wrong, right])
    assert scores.accuracy == RECENT_SAMPLES / 5500
    assert (scores.recent_accuracy, scores.class_accuracy(0)) == (1.0, 1.0)
    assert scores.faded_accuracy == pytest.approx(1 - FADING_FACTOR**RECENT_SAMPLES, rel=0.01)


@given(BLOCKS, BLOCKS)
def test_a_checkpoint_goes_on_as_if_never_stopped(before, after) -> None:
    steady = scored(before)
    steady.judged([0, 2], [0.5, 0.25], [0.75, 0.125])
    arrays, _ = unpack(pack({"engine.x": np.ones(3)} | steady.state(), {}))
    assert [name for name in arrays if not is_score(name)] == ["engine.x"]
    resumed = StreamScores()
    resumed.load(arrays)
    assert all_of(resumed) == all_of(steady)
    for block in after:
        answers = np.array(block, dtype=np.int64).reshape(-1, 2)
        for scores in (steady, resumed):
            scores.add(answers[:, 0], answers[:, 1])
            scores.judged([1, 2], [0.5, 0.5])
    assert all_of(resumed) == all_of(steady)
    states = [scores.state() for scores in (steady, resumed)]
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name])
        assert array.dtype == states[1][name].dtype


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), unique=True, max_size=6),
            st.lists(st.lists(st.integers(0, 8), min_size=6, max_size=6), min_size=1, max_size=3),
        ),
        max_size=8,
    )
)
def test_forgetting_is_what_each_class_has_lost_against_the_best(decisions) -> None:
    scores, best, expected = StreamScores(), {}, None
    for places, versions in decisions:
        accuracies = [[version[place] / 8 for place in places] for version in versions]
        scores.judged(places, *accuracies)
        lost = []
        for position, place in enumerate(places):
            for version in accuracies:
                best[place] = max(best.get(place, 0.0), version[position])
            lost.append(best[place] - accuracies[0][position])
        expected = sum(lost) / len(lost) if lost else expected
        if expected is not None:
            assert scores.forgetting == pytest.approx(expected)
            assert 0 <= scores.forgetting <= 1
    assert (scores.forgetting is None) == (expected is None)


def test_a_checkpoint_without_scores_is_refused() -> None:
    with pytest.raises(KeyError):
        StreamScores().load({"engine.x": np.ones(3)})
