"""Features that have moved for good are standardised anew; faults, and what comes and goes, not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.config import LearnerSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.learning.inputs import InputWatch, rows_to_fit
from daemon.learning.learner import Learner
from daemon.store import SampleStore, StoredSample
from engines import Weights, open_train_engine
from models import ModelSpec
from tests.test_learner import exported, make_learner

BLOCK = 32
SETTINGS = LearnerSettings(
    block_samples=BLOCK, steps_per_block=8, batch_samples=16, learning_rate=0.01
)
Floats = NDArray[np.float32]
Change = Callable[[Floats], Floats]


def same(x: Floats) -> Floats:
    return x


# --- one watch ------------------------------------------------------------------------------------


def fitted_to(x: Floats) -> Weights:
    engine = open_train_engine(ModelSpec("mlp", x.shape[1:], 4, (8,)), seed=0)
    engine.standardize_from(x)
    return engine.export(classes=(), version=1, parent=None, last_seq=0)


@pytest.fixture(params=[(6,), (3, 8), (3, 4, 4)], ids=["features", "window", "image"])
def x(request: pytest.FixtureRequest) -> Floats:
    """512 samples; features, or channels, are of different sizes and places."""
    drawn = np.random.default_rng(0).normal(size=(512, *request.param))
    shape = (1, -1, *[1] * (drawn.ndim - 2))
    scale = 10.0 ** np.arange(drawn.shape[1]).reshape(shape)
    return (drawn * scale + 5 * scale).astype(np.float32)


def changed(x: Floats, change: Change) -> Floats:
    """The second half, its feature or channel 1 changed."""
    newest = x[256:].copy()
    newest[:, 1] = change(newest[:, 1])
    return newest


def fits(x: Floats, change: Change, blocks: float) -> tuple[list[int], list[int]]:
    """What would be fitted together, what alone, so many blocks after a change."""
    watch, newest = InputWatch(x.shape[1]), changed(x, change)
    weights = fitted_to(x[:256])
    for _ in range(round(blocks * 4)):
        watch.add(newest, weights, 0.25)
    return found(watch, x, newest)


def found(watch: InputWatch, x: Floats, newest: Floats) -> tuple[list[int], list[int]]:
    together, alone = watch.to_fit(x[:256], newest, fitted_to(x[:256]))
    return np.flatnonzero(together).tolist(), np.flatnonzero(alone).tolist()


def test_what_stays_is_not_fitted(x: Floats) -> None:
    assert fits(x, same, 20) == ([], [])


@pytest.mark.parametrize("change", [lambda v: 75 - v, lambda v: v + 30], ids=["turned", "shifted"])
def test_what_moves_a_little_is_fitted_with_what_was_before(x: Floats, change: Change) -> None:
    # One of three channels is a part of the world so large that all are.
    assert fits(x, change, 4) == ([1] if x.shape[1] == 6 else [0, 1, 2], [])


@pytest.mark.parametrize(
    "change",
    [lambda v: 1000 * v, lambda v: v / 1000, lambda v: v + 1e6],
    ids=["larger unit", "smaller unit", "far away"],
)
def test_what_moves_far_or_shrinks_is_fitted_alone_and_later(x: Floats, change: Change) -> None:
    watch, newest, weights = InputWatch(x.shape[1]), changed(x, change), fitted_to(x[:256])
    for _ in range(9):
        watch.add(newest, weights, 1.0)
    assert found(watch, x, newest) == ([], [])
    watch.add(newest, weights, 1.0)
    assert watch.moved
    assert found(watch, x, newest) == ([], [1])
    watch.fitted(np.arange(x.shape[1]) == 1)
    assert not watch.moved


@pytest.mark.parametrize("value", [0.0, 4095.0, 3e38, -3e38])
def test_a_stuck_sensor_is_not_fitted(x: Floats, value: float) -> None:
    watch, newest = InputWatch(x.shape[1]), changed(x, lambda v: np.full_like(v, value))
    weights = fitted_to(x[:256])
    for _ in range(20):
        watch.add(newest, weights, 1.0)
    assert found(watch, x, newest) == ([], [])


def test_a_fault_that_ends_leaves_nothing(x: Floats) -> None:
    watch, wild, weights = InputWatch(x.shape[1]), changed(x, lambda v: 1e4 * v), fitted_to(x[:256])
    for _ in range(9):
        watch.add(wild, weights, 1.0)
    watch.add(x[:256], weights, 1.0)
    assert not watch.moved


def test_what_never_varied_and_does_now_is_fitted() -> None:
    x = np.random.default_rng(0).normal(20, 5, (256, 6)).astype(np.float32)
    before = x.copy()
    before[:, 1] = 0
    watch = InputWatch(6)
    watch.add(x, fitted_to(before), 1.0)
    together, alone = watch.to_fit(before, x, fitted_to(before))
    assert (np.flatnonzero(together).tolist(), alone.any()) == ([1], False)


def stored(place: int, *seqs: int) -> list[StoredSample]:
    return [StoredSample(seq, place, "float32", b"") for seq in seqs]


def test_it_is_fitted_to_the_newest_block_and_twice_as_many_from_memory() -> None:
    older, newest = rows_to_fit(stored(0, *range(1000)), stored(0, *range(990, 1020)), 30, 8)
    assert [row.seq for row in newest] == list(range(990, 1020))
    seqs = [row.seq for row in older]
    assert seqs == sorted(set(seqs))
    assert 40 <= len(seqs) <= 60
    assert seqs[0] < 50  # from all of memory
    assert 900 < seqs[-1] < 990


def test_large_samples_are_fewer() -> None:
    older, newest = rows_to_fit(stored(0, *range(100)), stored(0, 100), 64, 3 * 512 * 512)
    assert (len(older), len(newest)) == (2, 1)


def test_less_than_half_of_the_classes_say_nothing() -> None:
    memory = [
        row for place in range(4) for row in stored(place, *range(10 * place, 10 * place + 10))
    ]
    assert rows_to_fit(memory, stored(0, 40, 41), 2, 8) == ([], [])
    _, newest = rows_to_fit(memory, stored(0, 40) + stored(3, 41), 2, 8)
    assert len(newest) == 2


# --- a learner ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.1, queue_samples=4096)
    yield store
    store.close()


class Stream:
    """A learner, and samples of three classes, told apart by which features are large."""

    def __init__(self, store: SampleStore, folder: Path) -> None:
        self._store = store
        self._draw = np.random.default_rng(0)
        self.learner = make_learner(folder, SETTINGS)
        self.moved: list[str] = []

    def post(self, count: int, change: Change = same, labels: int = 3) -> None:
        samples = []
        for _ in range(count):
            label = int(self._draw.integers(labels))
            x = self._draw.normal(size=16).astype(np.float32)
            x[5 * label : 5 * label + 5] += 3
            features = pack_features(change(x).astype(np.float32))
            samples.append(Sample(*features, f"c{label}", None, "test", None))
        self._store.add(samples).result(10)

    def learn(self, count: int, change: Change = same) -> float:
        """Samples in blocks; right answers to the last 200, or fewer."""
        for start in range(0, count, 100):
            self.post(min(100, count - start), change)
        while self.learner.backlog():
            self.learner.learn_block()
        notes = [note.text for note in self.learner.notes if note.kind == "inputs"]
        self.learner.notes.clear()
        self.moved += notes
        return float(self.learner.score.recent[-min(200, count) :].mean())


@pytest.fixture
def stream(store: SampleStore, tmp_path: Path) -> Stream:
    return Stream(store, tmp_path)


def one_sensor(change: Change) -> Change:
    def of_one(x: Floats) -> Floats:
        x = x.copy()
        x[2] = change(x[2])
        return x

    return of_one


def test_a_stream_that_stays_is_standardised_once(stream: Stream) -> None:
    stream.learn(64)
    before = exported(stream.learner)["input.mean"]
    stream.learn(900)
    assert stream.moved == []
    assert exported(stream.learner)["input.mean"] == before


def test_inputs_that_moved_are_learned(stream: Stream) -> None:
    stream.learn(600)
    assert stream.learn(900, lambda x: 4 - x) > 0.85
    assert stream.moved


def test_another_unit_is_learned_and_so_is_the_old_one_again(stream: Stream) -> None:
    assert stream.learn(600) > 0.9
    assert stream.learn(900, lambda x: 1000 * x) > 0.85
    assert stream.learn(1200) > 0.85
    assert len(stream.moved) >= 2


def test_one_sensor_of_many_is_followed(stream: Stream) -> None:
    stream.learn(600)
    stream.learn(600, one_sensor(lambda v: 1000 * v))
    assert stream.moved == ["inputs have moved, and are standardised anew: 1"]


@pytest.mark.parametrize(
    "fault",
    [lambda x: np.full_like(x, 4095), lambda x: 2e5 * x, one_sensor(lambda v: v * 0 - 9999)],
    ids=["stuck", "wild", "one stuck"],
)
def test_a_fault_that_ends_costs_nothing_that_lasts(stream: Stream, fault: Change) -> None:
    stream.learn(640)
    stream.learn(64, fault)
    assert stream.learn(640) > 0.9
    assert stream.moved == []


def test_a_fault_in_the_first_block_is_forgotten(stream: Stream) -> None:
    stream.learn(6, lambda x: x * 0 - 9999)
    assert stream.learn(900) > 0.85
    assert len(stream.moved) == 1


def test_loud_and_quiet_in_turns_is_left_as_it_is(stream: Stream) -> None:
    for _ in range(5):
        stream.learn(160)
        stream.learn(160, lambda x: 50 * x)
    assert stream.moved == []


def test_a_learner_that_goes_on_from_its_checkpoint_sees_the_same(
    stream: Stream, tmp_path: Path
) -> None:
    """It ends between the change of unit and when it is followed."""
    stream.learn(400)
    stream.learn(6 * BLOCK, lambda x: 1000 * x)
    stream.learner.save()
    again = make_learner(tmp_path, SETTINGS)
    assert again.restore()
    assert stream.moved == []
    stream.post(300, lambda x: 1000 * x)
    learned: list[Learner] = [stream.learner, again]
    for learner in learned:
        while learner.backlog():
            learner.learn_block()
    notes = [[note.kind for note in learner.notes] for learner in learned]
    assert notes[0] == notes[1]
    assert "inputs" in notes[0]
    assert exported(stream.learner) == exported(again)
