"""Inputs that have moved are standardised anew; a few wild ones change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.config import LearnerSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.learning.inputs import InputWatch, rows_to_fit, spread, tell_apart
from daemon.learning.learner import Learner
from daemon.store import SampleStore, StoredSample
from engines import open_train_engine
from tests.test_learner import SPEC, exported, make_learner

BLOCK = 32
SETTINGS = LearnerSettings(
    block_samples=BLOCK, steps_per_block=8, batch_samples=16, learning_rate=0.01
)
SHAPE = (200, *SPEC.input_shape)


def network(x: np.ndarray):
    engine = open_train_engine(SPEC, seed=0)
    engine.standardize_from(x)
    return engine.export(classes=(), version=1, parent=None, last_seq=0)


def test_the_spread_is_that_of_standardised_inputs() -> None:
    x = np.random.default_rng(0).normal(5, 3, SHAPE).astype(np.float32)
    weights = network(x)
    # Mean |z| of a normal distribution: sqrt(2 / pi).
    assert spread(weights, x) == pytest.approx(np.sqrt(2 / np.pi), abs=0.03)
    assert spread(weights, x + 9) == pytest.approx(3, abs=0.1)


def test_values_beyond_all_bounds_count_four() -> None:
    weights = network(np.zeros(SHAPE, np.float32))
    assert spread(weights, np.full(SHAPE, np.finfo(np.float32).max)) == 4


@pytest.mark.parametrize(
    ("found", "moved"), [(1.99, False), (2.01, True), (0.51, False), (0.49, True)]
)
def test_a_block_at_twice_or_half_has_moved(found: float, moved: bool) -> None:
    assert InputWatch(1.0, 1.0).moved(found, 1.0) == moved


def test_single_samples_count_as_their_share_of_a_block() -> None:
    watch = InputWatch(1.0, 1.0)
    assert not watch.moved(4.0, 1 / BLOCK)
    moved = [watch.moved(4.0, 1 / BLOCK) for _ in range(BLOCK)]
    assert moved[-1]
    assert not any(moved[:5])


def test_what_never_varied_and_does_now_has_moved() -> None:
    assert not InputWatch(0.0, 0.0).moved(0.0, 1.0)
    assert InputWatch(0.0, 0.0).moved(0.1, 1.0)


def stored(*seqs: int) -> list[StoredSample]:
    return [StoredSample(seq, 0, "float32", b"") for seq in seqs]


def test_it_is_fitted_to_the_newest_block_and_twice_as_many_from_memory() -> None:
    older, newest = rows_to_fit(stored(*range(1000)), stored(*range(990, 1020)), 30)
    assert [row.seq for row in newest] == list(range(990, 1020))
    seqs = [row.seq for row in older]
    assert seqs == sorted(set(seqs))
    assert 40 <= len(seqs) <= 60
    assert seqs[0] < 50  # from all of memory
    assert 900 < seqs[-1] < 990


def test_it_is_fitted_to_what_there_is() -> None:
    assert rows_to_fit([], stored(3, 4), 30) == ([], stored(3, 4))


@pytest.mark.parametrize("shape", [(16,), (2, 8), (1, 4, 4)])
def test_worlds_far_apart_do_not_share_a_standardisation(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(96, *shape)).astype(np.float32)
    older, newest = x[:64], x[64:]
    assert tell_apart(older, newest)
    assert tell_apart(older, 2 - newest)
    assert tell_apart(older, 255 * newest)
    assert not tell_apart(older, newest / 255)
    assert not tell_apart(older, 20 - newest)


def test_what_does_not_vary_or_has_nothing_before_it_is_fitted_as_it_is() -> None:
    one = np.ones((8, 16), np.float32)
    assert tell_apart(one[:0], one)
    assert tell_apart(one * 5, one)
    half = np.concatenate([one[:, :8], np.random.default_rng(0).normal(size=(8, 8))], axis=1)
    assert tell_apart(half, half)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.1, queue_samples=4096)
    yield store
    store.close()


def fill(store: SampleStore, count: int, seed: int, turned: bool = False) -> None:
    """Three classes, told apart by which third of the features is large; upside down if turned."""
    draw = np.random.default_rng(seed)
    for _ in range(0, count, 100):
        samples = []
        for _ in range(100):
            label = int(draw.integers(3))
            x = draw.normal(size=16).astype(np.float32)
            x[5 * label : 5 * label + 5] += 3
            x = 20 - x if turned else x
            samples.append(Sample(*pack_features(x), f"c{label}", None, "test", None))
        store.add(samples).result(10)


def learn(learner: Learner) -> list[str]:
    """All that there is; what was noted."""
    while learner.backlog():
        learner.learn_block()
    kinds = [note.kind for note in learner.notes]
    learner.notes.clear()
    return kinds


def test_a_stream_that_stays_is_standardised_once(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 600, 0)
    learner = make_learner(tmp_path, SETTINGS)
    learner.learn_block()
    before = learner.export(version=1, parent=None).arrays["input.mean"]
    assert "inputs" not in learn(learner)
    after = learner.export(version=1, parent=None).arrays["input.mean"]
    np.testing.assert_array_equal(before, after)


def after_a_turn(store: SampleStore, folder: Path) -> tuple[float, int]:
    """Right answers to the last samples, how often inputs moved; they were turned at half."""
    fill(store, 600, 0)
    learner = make_learner(folder, SETTINGS)
    learn(learner)
    fill(store, 600, 1, turned=True)
    moved = learn(learner).count("inputs")
    return float(learner.score.recent[-200:].mean()), moved


def test_inputs_that_moved_are_learned(store: SampleStore, tmp_path: Path) -> None:
    accuracy, moved = after_a_turn(store, tmp_path)
    assert moved == 1
    assert accuracy > 0.75


def test_without_it_they_are_not(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InputWatch, "moved", lambda self, found, share: False)
    accuracy, moved = after_a_turn(store, tmp_path)
    assert moved == 0
    assert accuracy < 0.6


def test_a_learner_that_goes_on_from_its_checkpoint_sees_the_same(
    store: SampleStore, tmp_path: Path
) -> None:
    """Half a block has moved when it ends; the other half is what it takes."""
    fill(store, 200, 0)
    learner = make_learner(tmp_path, SETTINGS)
    learn(learner)
    learner.save()
    again = make_learner(tmp_path, SETTINGS)
    assert again.restore()
    fill(store, 100, 1, turned=True)
    assert learn(learner) == learn(again)
    assert exported(learner) == exported(again)
