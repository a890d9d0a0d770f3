"""Figures of streams, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stream_scores import (
    LEVEL_SAMPLES,
    WINDOW,
    faded,
    forgetting,
    level,
    present_accuracies,
    recovered,
    recovery,
)

MATRIX = [[0.9, 0.1, 0.0], [0.7, 0.8, 0.0], [0.8, 0.2, 1.0]]


def test_forgetting_is_the_fall_from_the_best_before_the_end() -> None:
    # Task 1: 0.9 - 0.8; task 2: 0.8 - 0.2; the last has had no time to be forgotten.
    assert forgetting(MATRIX) == pytest.approx((0.1 + 0.6) / 2)
    # One that ends better than ever before counts as negative (Chaudhry et al., definition 3).
    assert forgetting([[0.5, 0.0], [0.6, 1.0]]) == pytest.approx(-0.1)


def test_accuracy_is_over_tasks_so_far_or_of_the_present_concept() -> None:
    assert present_accuracies(MATRIX, None) == pytest.approx([0.9, 0.75, 2.0 / 3])
    assert present_accuracies(MATRIX, (0, 1, 0)) == [0.9, 0.8, 0.8]


def test_fading_counts_new_answers_more() -> None:
    assert faded(np.array([True, False, True])) == pytest.approx(
        (0.999**2 + 1) / (0.999**2 + 0.999 + 1)
    )
    late = np.arange(2000) >= 1000
    assert faded(late) > 0.7 > 0.3 > faded(~late)


def test_recovery_is_where_a_whole_window_is_back() -> None:
    wrong = np.zeros(100, dtype=bool)
    right = np.ones(1000, dtype=bool)
    after = np.concatenate([wrong, right])
    # 2 points of 250 are 5: the window may still hold five wrong answers.
    assert recovery(after, 1.0) == WINDOW + 95
    assert recovery(right, 1.0) == WINDOW
    assert recovery(wrong, 0.5) is None
    assert recovery(np.zeros(1000, dtype=bool), 0.5) is None


def test_a_change_is_measured_against_before_and_against_a_fresh_learner() -> None:
    before = np.concatenate([np.zeros(300, dtype=bool), np.ones(LEVEL_SAMPLES, dtype=bool)])
    after = np.arange(800) >= 100
    figures = recovered(np.concatenate([before, after]), len(before), 0.5)
    assert level(before) == figures["level_before"] == 1.0
    assert figures["recovery_samples"] == WINDOW + 95
    assert figures["recovery_to_fresh_samples"] == WINDOW
    assert recovered(after, 0, None)["recovery_samples"] is None
