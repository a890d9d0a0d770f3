"""Drift: found soon after errors become more frequent, and at no other time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.learning.drift import NEW_CLASS_SAMPLES, Adwin, DriftWatch

DELTA = 0.002
SEEDS = range(20)


def alarms(errors: np.ndarray) -> list[tuple[int, int]]:
    """After how many errors each alarm came, and where it puts the change."""
    window, found = Adwin(1, DELTA), []
    for number, wrong in enumerate(errors.tolist(), 1):
        if window.add(wrong, 0, number):
            found.append((number, window.since))
    return found


def test_no_alarm_where_nothing_changes() -> None:
    """20 seeds of 20,000 samples, at error rates from 2 % to a half."""
    for seed in SEEDS:
        rate = (0.02, 0.1, 0.3, 0.5)[seed % 4]
        assert alarms(np.random.default_rng(seed).random(20_000) < rate) == []


@pytest.mark.parametrize(("before", "after", "delay"), [(0.05, 0.3, 200), (0.1, 0.5, 150)])
def test_a_change_is_found_soon_and_its_place_is_known(
    before: float, after: float, delay: int
) -> None:
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        errors = np.concatenate([draw.random(5000) < before, draw.random(2000) < after])
        (found, place), *more = alarms(errors)
        assert 5000 < found <= 5000 + delay
        assert abs(place - 5000) <= delay
        assert len(more) <= 1


def test_fewer_errors_are_no_alarm() -> None:
    """What learning does; and it is forgotten that there were more, or a return would be missed."""
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        falling = np.concatenate([draw.random(2000) < rate for rate in (0.9, 0.5, 0.2, 0.05)])
        assert alarms(falling) == []
        back = np.concatenate([falling, draw.random(500) < 0.3])
        assert alarms(back)[0][0] < 8000 + 300


@given(st.lists(st.booleans(), max_size=600), st.integers(0, 600))
@settings(max_examples=30)
def test_resumed_anywhere_it_is_as_if_never_stopped(errors: list[bool], cut: int) -> None:
    steady, resumed = Adwin(1, DELTA), Adwin(1, DELTA)
    said = [steady.add(wrong, 0, seq) for seq, wrong in enumerate(errors)]
    again = [resumed.add(wrong, 0, seq) for seq, wrong in enumerate(errors[:cut])]
    other = Adwin(1, DELTA)
    other.load(resumed.state())
    again += [other.add(wrong, 0, seq) for seq, wrong in enumerate(errors[cut:], cut)]
    assert again == said
    np.testing.assert_array_equal(other.state(), steady.state())


@given(st.lists(st.booleans(), min_size=1, max_size=3000))
@settings(max_examples=20)
def test_the_window_counts_right_and_stays_small(errors: list[bool]) -> None:
    window = Adwin(1, 1e-300)  # never cut
    for seq, wrong in enumerate(errors):
        window.add(wrong, 0, seq)
    assert window.errors == (len(errors), sum(errors))
    assert window.since == 0
    assert len(window.state()) - 1 <= 6 * (math.log2(len(errors)) + 1)


def test_errors_of_classes_that_are_new_are_no_drift() -> None:
    watch = DriftWatch(4, DELTA)
    draw = np.random.default_rng(0)
    seq = 0

    def block(labels: np.ndarray, rate: float) -> int | None:
        nonlocal seq
        seqs = [*range(seq, seq + len(labels))]
        seq += len(labels)
        return watch.add(draw.random(len(labels)) < rate, labels, seqs)

    for _ in range(20):
        assert block(draw.integers(2, size=100), 0.05) is None
    fresh = np.full(NEW_CLASS_SAMPLES, 2)
    assert block(fresh, 1.0) is None
    assert block(draw.integers(3, size=300), 0.05) is None
    change = block(draw.integers(3, size=300), 0.6)
    assert change is not None
    assert abs(change - 2400) < 100


def test_a_watch_goes_on_from_its_state() -> None:
    first, second = DriftWatch(3, DELTA), DriftWatch(3, DELTA)
    draw = np.random.default_rng(1)
    labels = draw.integers(3, size=1000)
    first.add(draw.random(1000) < 0.1, labels, [*range(1000)])
    second.load(first.state())
    wrong = draw.random(500) < 0.7
    seqs = [*range(1000, 1500)]
    assert first.add(wrong, labels[:500], seqs) == second.add(wrong, labels[:500], seqs)
    for name, array in first.state().items():
        np.testing.assert_array_equal(second.state()[name], array)


def watched(labels: np.ndarray, rates: np.ndarray, seed: int) -> list[int]:
    """After how many samples the watch answers, of which each has an error rate."""
    watch, found = DriftWatch(10, DELTA), []
    wrong = np.random.default_rng(seed).random(len(labels)) < rates
    for start in range(0, len(labels), 32):
        part = slice(start, start + 32)
        seqs = [*range(len(labels))[part]]
        if watch.add(wrong[part], labels[part], seqs) is not None:
            found.append(seqs[-1] + 1)
    return found


@pytest.mark.parametrize("run", [128, 512])
def test_runs_of_easy_and_hard_classes_are_no_drift(run: int) -> None:
    """Nothing changes but which class comes: 2 % errors of even ones, 20 % of odd ones."""
    for seed in SEEDS:
        runs = np.random.default_rng(seed).integers(10, size=15_000 // run)
        labels = np.repeat(runs, run)
        assert watched(labels, np.where(labels % 2, 0.2, 0.02), seed) == []


def test_classes_that_become_frequent_are_no_drift() -> None:
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        labels = np.concatenate([draw.integers(8, size=3000), draw.integers(6, 10, size=3000)])
        assert watched(labels, np.where(labels > 6, 0.4, 0.05), seed) == []


def test_each_class_learned_in_its_turn_is_no_drift() -> None:
    """One class after another, never seen again, each wrong at first and then seldom."""
    for seed in SEEDS:
        labels = np.repeat(np.arange(10), 500)
        age = np.tile(np.arange(500), 10)
        assert watched(labels, 0.02 + 0.9 * np.exp(-age / 40), seed) == []


def test_a_change_of_all_classes_is_found_as_soon_as_one_of_a_single_class() -> None:
    for seed in SEEDS:
        labels = np.random.default_rng(seed).integers(10, size=7000)
        hard = np.where(labels % 2, 0.2, 0.02)
        rates = np.where(np.arange(7000) < 5000, hard, hard + 0.4)
        found, *more = watched(labels, rates, seed)
        assert 5000 < found <= 5000 + 150
        assert len(more) <= 1


def test_a_change_within_runs_of_classes_is_found() -> None:
    for seed in SEEDS:
        runs = np.random.default_rng(seed).integers(10, size=100)
        labels = np.repeat(runs, 64)
        hard = np.where(labels % 2, 0.2, 0.02)
        found, *_ = watched(labels, np.where(np.arange(6400) < 4800, hard, hard + 0.4), seed)
        assert 4800 < found <= 4800 + 300
