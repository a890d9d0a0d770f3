"""The learner as plain calls: honest scores, hold-out kept apart, resume to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.config import LearnerSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.learning.holdout import Holdout
from daemon.learning.learner import Learner
from daemon.store import SampleReader, SampleStore
from engines import StepReport, open_predict_engine, open_train_engine
from models import ModelSpec

SPEC = ModelSpec("mlp", (16,), 4, (32, 32))
SETTINGS = LearnerSettings(block_samples=32, steps_per_block=8, batch_samples=32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


def fill(store: SampleStore, count: int, seed: int = 0) -> None:
    """Three classes, told apart by which third of the features is large."""
    draw = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        label = int(draw.integers(3))
        x = draw.normal(size=16).astype(np.float32)
        x[5 * label : 5 * label + 5] += 3
        samples.append(Sample(*pack_features(x), f"c{label}", None, "test", None))
    store.add(samples).result(10)


def make_learner(folder: Path, settings: LearnerSettings = SETTINGS) -> Learner:
    reader = SampleReader(folder, SPEC)
    checkpoint = folder / "checkpoint.safetensors"
    return Learner(
        SPEC,
        lambda: open_train_engine(SPEC, seed=settings.seed),
        open_predict_engine().open,
        reader,
        settings,
        holdout_samples=100,
        checkpoint=checkpoint,
    )


def exported(learner: Learner) -> dict[str, bytes]:
    weights = learner.export(version=1, parent=None)
    return {name: array.tobytes() for name, array in weights.arrays.items()}


def test_learns_blocks_in_order_until_nothing_is_left(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    training = 100 - store.counts.holdout
    assert learner.backlog() == training
    first = learner.learn_block()
    assert (first.samples, first.steps) == (32, 8)
    assert learner.backlog() == training - 32
    sizes = [first.samples]
    while (block := learner.learn_block()).samples:
        sizes.append(block.samples)
    assert sum(sizes) == training
    assert learner.backlog() == 0
    # A partial block takes its share of the steps, rounded up.
    assert learner.steps == sum(-(-8 * size // 32) for size in sizes)


def test_every_sample_is_scored_before_it_is_learned(store: SampleStore, tmp_path: Path) -> None:
    """An untrained network knows no class, so the first block scores nothing right."""
    fill(store, 200)
    learner = make_learner(tmp_path)
    learner.learn_block()
    assert (learner.score.total, learner.score.correct) == (32, 0)
    while learner.learn_block().samples:
        pass
    assert learner.score.total == 200 - store.counts.holdout
    assert learner.score.recent_accuracy is not None
    assert learner.score.correct > 0.5 * (learner.score.total - 32)


def test_holdout_samples_are_never_trained_on(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 200)
    seen: list[bytes] = []
    learner = make_learner(tmp_path)
    engine = learner._state.engine
    train_step = engine.train_step

    def spy(x: np.ndarray, labels: np.ndarray, **rates: float) -> StepReport:
        seen.extend(row.tobytes() for row in x)
        return train_step(x, labels, **rates)

    engine.train_step = spy
    while learner.learn_block().samples:
        pass
    learner.rehearse(20)
    reader = SampleReader(tmp_path, SPEC)
    holdout = {row.tobytes() for row in reader.batch(Holdout(reader, 1000).samples())[0]}
    assert len(holdout) == store.counts.holdout > 20
    assert holdout.isdisjoint(seen)


def test_candidate_and_incumbent_are_compared_on_the_same_samples(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 400)
    learner = make_learner(tmp_path)
    untrained = learner.export(version=1, parent=None)
    while learner.learn_block().samples:
        pass
    trained = learner.export(version=2, parent=1)
    assert set(trained.classes) == {"c0", "c1", "c2"}
    scores = learner.compare(trained, untrained, [untrained])
    assert scores.n == store.counts.holdout
    assert scores.incumbent_correct == 0
    assert scores.candidate_correct > 0.9 * scores.n
    signs: list[None] = []
    swapped = learner.compare(untrained, trained, [trained], lambda: signs.append(None))
    assert (swapped.n, swapped.incumbent_correct) == (scores.n, scores.candidate_correct)
    assert (swapped.best_correct, swapped.candidate_correct) == (scores.candidate_correct, 0)
    # Of life, between parts; the best version is the incumbent and is not asked again.
    assert len(signs) == 2 * math.ceil(scores.n / 64) > 2


def test_resumes_with_the_same_bits_as_if_never_stopped(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 300)
    steady = make_learner(tmp_path)
    for _ in range(5):
        steady.learn_block()
    stopped = make_learner(tmp_path)
    for _ in range(2):
        stopped.learn_block()
    stopped.save()
    saved = (stopped.last_seq, stopped.steps)
    stopped.learn_block()  # lost with the crash
    resumed = make_learner(tmp_path)
    assert resumed.restore()
    assert (resumed.last_seq, resumed.steps) == saved
    for _ in range(3):
        resumed.learn_block()
    assert exported(resumed) == exported(steady)
    assert resumed.score.total == steady.score.total
    assert resumed.score.correct == steady.score.correct
    np.testing.assert_array_equal(resumed.score.recent, steady.score.recent)


def test_proposing_changes_nothing_in_what_is_learned(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 200)
    quiet, busy = make_learner(tmp_path), make_learner(tmp_path)
    for _ in range(4):
        quiet.learn_block()
        busy.learn_block()
        candidate = busy.export(version=7, parent=1)
        busy.compare(candidate, candidate, [candidate])
        busy.save()
    assert exported(quiet) == exported(busy)


def test_a_damaged_checkpoint_is_set_aside(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    path = tmp_path / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    fresh = make_learner(tmp_path)
    assert not fresh.restore()
    assert (fresh.last_seq, fresh.steps, fresh.score.total) == (0, 0, 0)
    fresh.learn_block()


def test_a_checkpoint_ahead_of_the_samples_is_set_aside(tmp_path: Path) -> None:
    """The database was replaced by an empty one: what was learned from is gone."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, count in ((old, 100), (new, 1)):
        store = SampleStore(folder, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
        fill(store, count)
        store.close()
    learner = make_learner(old)
    while learner.learn_block().samples:
        pass
    learner.save()
    (new / "checkpoint.safetensors").write_bytes((old / "checkpoint.safetensors").read_bytes())
    assert not make_learner(new).restore()


def test_a_class_that_comes_no_more_is_remembered_and_served(
    store: SampleStore, tmp_path: Path
) -> None:
    """Two classes come early alone, ten samples each; memory has room for 40."""
    x = np.zeros(16, np.float32)
    samples = []
    for number in range(300):
        x[0] = number
        label = f"c{number % 3 if number < 30 else 0}"
        samples.append(Sample(*pack_features(x), label, None, "test", None))
    store.add(samples).result(10)
    learner = make_learner(tmp_path, SETTINGS.model_copy(update={"replay_samples": 40}))
    while learner.learn_block().samples:
        pass
    assert len(learner.export(version=1, parent=None).classes) == 3
    places = [sample.class_index for sample in learner._state.memory.samples]
    early = SampleReader(tmp_path, SPEC).training(0, 1000)[0]
    for place in (1, 2):
        assert places.count(place) == sum(s.class_index == place for s in early) > 3
    assert len(places) == 40
    learner.save()
    resumed = make_learner(tmp_path)
    assert resumed.restore()
    assert len(resumed.export(version=1, parent=None).classes) == 3
