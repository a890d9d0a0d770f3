"""Checkpoints: making one changes nothing in what is learned, and each is whole whoever writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.learning.learner import Learner
from daemon.store import SampleStore
from engines.tensor_file import unpack
from tests.test_learner import exported, fill, make_learner


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    fill(store, 130)
    yield store
    store.close()


def test_saving_after_every_step_changes_nothing(store: SampleStore, tmp_path: Path) -> None:
    """VowpalWabbit issue 641: there a save alters what is learned later."""
    saved = []
    weights = []
    for saves in (False, True):
        learner = make_learner(tmp_path)

        def on_step(learner: Learner = learner, saves: bool = saves) -> None:
            if saves:
                learner.save()
                saved.append((tmp_path / "checkpoint.safetensors").read_bytes())

        while learner.learn_block(on_step).samples:
            pass
        learner.rehearse(3, on_step)
        weights.append(exported(learner))
    assert weights[0] == weights[1]
    assert len(set(saved)) >= learner.steps > 25


def test_every_checkpoint_holds_the_network_that_it_was_made_of(
    store: SampleStore, tmp_path: Path
) -> None:
    """VowpalWabbit issue 413: there a save was near empty."""
    learner = make_learner(tmp_path)
    while learner.learn_block().samples:
        learner.save()
        other = make_learner(tmp_path)
        assert other.restore()
        assert exported(other) == exported(learner)


@pytest.mark.parametrize("writers", [2, 50])
def test_checkpoints_written_at_once_leave_a_whole_one_each_time(
    store: SampleStore, tmp_path: Path, writers: int
) -> None:
    """VowpalWabbit issue 627: two quick saves left no model there."""
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    path, done, read = tmp_path / "checkpoint.safetensors", threading.Event(), []

    def look() -> None:
        while not done.is_set():
            read.append(unpack(path.read_bytes())[1]["steps"])

    with ThreadPoolExecutor(writers + 1) as pool:
        reader = pool.submit(look)
        try:
            for save in [pool.submit(learner.save) for _ in range(writers)]:
                save.result(60)
        finally:
            done.set()
        reader.result(60)
    assert set(read) == {learner.steps}
    assert make_learner(tmp_path).restore()
    assert [*tmp_path.glob(".*.tmp")] == []
