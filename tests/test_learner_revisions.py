"""What is said of a sample later reaches the learner: by the next block, and with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.ingest.sample import Sample, pack_features
from daemon.learning.learner import Learner
from daemon.store import SampleStore
from engines import StepReport
from tests.daemon_fixtures import query
from tests.test_learner import SETTINGS, exported, fill, make_learner

FEW = SETTINGS.model_copy(update={"replay_samples": 40})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


def trained_on(learner: Learner) -> list[bytes]:
    """Fills with what the learner trains on from now on."""
    seen: list[bytes] = []
    train_step = learner._state.engine.train_step

    def spy(x: np.ndarray, labels: np.ndarray, **rates: float) -> StepReport:
        seen.extend(row.tobytes() + bytes([label]) for row, label in zip(x, labels, strict=True))
        return train_step(x, labels, **rates)

    learner._state.engine.train_step = spy
    return seen


def content(learner: Learner, seq: int) -> bytes:
    """What a step sees of a sample, whether or not it still counts."""
    (found,) = learner._reader.samples([seq])
    x, labels = learner._reader.batch([found])
    return x[0].tobytes() + bytes([labels[0]])


def retire(store: SampleStore, folder: Path, seqs: list[int], how: str) -> None:
    for seq in seqs:
        if how == "withdrawn":
            store.withdraw(f"s-{seq}").result(10)
        elif how == "relabelled":
            named = "SELECT name FROM samples NATURAL JOIN classes WHERE seq = ?"
            ((name,),) = query(folder, named, seq)
            other = "c0" if name != "c0" else "c1"
            store.label(f"s-{seq}", other, replace=True).result(10)
        elif how == "found damaged":
            store.retire_damaged([seq]).result(10)
        else:  # as retention does it
            counted = """UPDATE counts SET samples = samples - 1 WHERE retired = 0
                AND class_index = (SELECT class_index FROM samples WHERE seq = ?) AND holdout = 0"""
            query(folder, counted, seq)
            query(folder, "DELETE FROM samples WHERE seq = ?", seq)


WAYS = ["withdrawn", "relabelled", "found damaged", "deleted"]


@pytest.mark.parametrize("how", WAYS)
def test_a_retired_sample_is_not_learned_again(
    store: SampleStore, tmp_path: Path, how: str
) -> None:
    fill(store, 200)
    learner = make_learner(tmp_path, FEW)
    for _ in range(3):
        learner.learn_block()
    gone = [sample.seq for sample in learner._state.memory.samples[::3]]
    contents = {content(learner, seq) for seq in gone}
    seen = trained_on(learner)
    learner.rehearse(8)
    assert contents <= set(seen)  # they would be drawn
    retire(store, tmp_path, gone, how)
    seen.clear()
    learner.rehearse(8)
    learner.learn_block()
    assert len(seen) == 16 * 32
    assert contents.isdisjoint(seen)
    assert len(learner._state.memory) == 40  # the new block took their places
    while learner.learn_block().samples:
        pass
    assert contents.isdisjoint(seen)


@pytest.mark.parametrize("how", WAYS)
def test_resumes_with_the_same_bits_although_samples_were_retired(
    store: SampleStore, tmp_path: Path, how: str
) -> None:
    """One is stopped after the retirement and goes on from its checkpoint, the other never is."""
    fill(store, 300)
    steady, stopped = make_learner(tmp_path, FEW), make_learner(tmp_path, FEW)
    for learner in (steady, stopped):
        for _ in range(3):
            learner.learn_block()
    stopped.save()
    retire(store, tmp_path, [sample.seq for sample in steady._state.memory.samples[::4]], how)
    resumed = make_learner(tmp_path, FEW)
    assert resumed.restore()
    for learner in (steady, resumed):
        for _ in range(2):
            learner.learn_block()
        learner.rehearse(4)
    assert resumed._state.memory.samples == steady._state.memory.samples
    assert exported(resumed) == exported(steady)


def test_unlabelled_samples_wait_for_their_label(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    draw = np.random.default_rng(5)
    unlabelled = [
        Sample(*pack_features(draw.normal(size=16).astype(np.float32)), None, f"u{i}", "test", None)
        for i in range(200)
    ]
    store.add(unlabelled).result(10)
    learner = make_learner(tmp_path)
    seen = trained_on(learner)
    while learner.learn_block().samples:
        pass
    features = [np.frombuffer(s.features, "<f4").tobytes() for s in unlabelled]
    assert set(features).isdisjoint(row[:-1] for row in seen)
    weights = learner.export(version=1, parent=None)
    assert learner.compare(weights, weights, [weights]).n == store.counts.holdout
    before = store.counts.to_learn
    for number in range(100):
        store.label(f"u{number}", "c1", replace=False).result(10)
    waiting = store.counts.to_learn - before
    assert learner.backlog() == waiting > 50
    while learner.learn_block().samples:
        pass
    assert learner.score.total == before + waiting
    assert set(features[100:]).isdisjoint(row[:-1] for row in seen)


def test_damaged_samples_are_passed_over_and_never_learned(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 200)
    learner = make_learner(tmp_path)
    damaged = [s.seq for s in learner._reader.training(0, 1000)[0]][-70::2]
    contents = {content(learner, seq) for seq in damaged}
    for seq in damaged:
        query(tmp_path, "UPDATE samples SET ts = 'flipped' WHERE seq = ?", seq)
    seen = trained_on(learner)
    blocks = []
    while (block := learner.learn_block()).samples:
        blocks.append(block.samples)
    assert sum(blocks) == store.counts.to_learn - 35
    assert set(blocks[:-1]) == {32}
    assert learner.backlog() == 0
    assert contents.isdisjoint(seen)


def test_learning_ends_where_all_that_is_left_is_damaged(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    while learner.learn_block().samples:
        pass
    fill(store, 10, seed=1)
    query(tmp_path, "UPDATE samples SET crc = crc + 1 WHERE seq > 100")
    assert learner.backlog() > 0
    assert learner.learn_block().samples == 0
    assert learner.backlog() == 0


def test_a_block_whose_samples_are_all_retired_while_it_is_read_harms_nothing(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 20)
    learner = make_learner(tmp_path)
    training = learner._reader.training

    def and_then_withdrawn(after_seq: int, limit: int):
        found = training(after_seq, limit)
        retire(store, tmp_path, [sample.seq for sample in found[0]], "withdrawn")
        return found

    learner._reader.training = and_then_withdrawn  # type: ignore[method-assign]
    assert learner.learn_block().samples > 10
    assert learner.learn_block().samples == 0
    assert learner.rehearse(3).steps == 0
