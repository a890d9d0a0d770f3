"""The progressive score counts every sample once, and the newest 500 apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daemon.learning.progressive import RECENT_SAMPLES, ProgressiveScore


def test_before_the_first_sample_there_is_no_score():
    score = ProgressiveScore()
    score.add(np.zeros(0, dtype=np.bool_))
    assert (score.total, score.accuracy, score.recent_accuracy) == (0, None, None)


def test_all_wrong_is_a_score_and_not_none():
    score = ProgressiveScore()
    score.add(np.zeros(3, dtype=np.bool_))
    assert (score.accuracy, score.recent_accuracy) == (0.0, 0.0)


@given(st.lists(st.lists(st.booleans(), max_size=400), max_size=6))
def test_it_is_the_share_of_right_answers_over_all_and_over_the_newest(blocks):
    score = ProgressiveScore()
    for block in blocks:
        score.add(np.array(block, dtype=np.bool_))
    results = [right for block in blocks for right in block]
    newest = results[-RECENT_SAMPLES:]
    assert (score.total, score.correct) == (len(results), sum(results))
    assert score.recent.tolist() == newest
    assert score.recent.dtype == np.bool_
    if results:
        assert score.accuracy == sum(results) / len(results)
        assert score.recent_accuracy == np.mean(newest)


def test_the_newest_forget_what_came_before():
    score = ProgressiveScore()
    score.add(np.zeros(1000, dtype=np.bool_))
    score.add(np.ones(RECENT_SAMPLES, dtype=np.bool_))
    assert (score.accuracy, score.recent_accuracy) == (500 / 1500, 1.0)
