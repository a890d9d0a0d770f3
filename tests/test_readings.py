"""A reading that comes again at once is no news: neither to drift, nor after a restart."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from daemon.ingest.sample import Sample, pack_features
from daemon.learning.learner import Learner
from daemon.learning.readings import REPEATS_WITHIN, are_new
from daemon.store import SampleStore, StoredSample
from tests.test_learner import fill, make_learner


def row(seq: int, value: int, place: int = 0) -> StoredSample:
    return StoredSample(seq, place, "uint8", bytes([value]))


def rows(values: list[int]) -> list[StoredSample]:
    return [row(seq, value) for seq, value in enumerate(values)]


def test_a_reading_is_new_where_it_has_not_come_of_late() -> None:
    assert are_new([], rows([1, 1, 2, 1, 3])).tolist() == [True, False, True, False, True]
    assert are_new(rows([1, 2]), rows([2, 3])).tolist() == [False, True]
    assert are_new([row(1, 5)], [row(2, 5, place=1)]).tolist() == [True]  # another label
    others = [*range(100, 100 + REPEATS_WITHIN)]
    assert are_new([], rows([1, *others, 1]))[-1]
    assert not are_new([], rows([1, *others[1:], 1]))[-1]


def test_a_long_stillness_is_one_reading_however_blocks_are_cut() -> None:
    stream = rows([*range(20), *[99] * 500, *range(20, 40)])
    whole = are_new([], stream)
    assert whole.sum() == 41
    cuts = [0, 1, 2, 30, 32, 100, 333, 519, 520, 521, len(stream)]
    pieces = [
        are_new(stream[max(0, start - REPEATS_WITHIN) : start], stream[start:end])
        for start, end in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def watched(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the numbers of what drift is watched on."""
    seen: list[int] = []
    add = learner._state.drift.add
    spy = lambda wrong, labels, seqs: seen.extend(seqs) or add(wrong, labels, seqs)  # noqa: E731
    monkeypatch.setattr(learner._state.drift, "add", spy)
    return seen


def test_drift_hears_of_a_still_sensor_once_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.0, queue_samples=1000)
    with closing(store):
        fill(store, 40)
        still = Sample(*pack_features(np.ones(16, np.float32)), "c0", None, "test", None)
        store.add([still] * 80).result(10)
        learner = make_learner(tmp_path)
        seen = watched(learner, monkeypatch)
        for _ in range(2):  # blocks of 32
            learner.learn_block()
        assert seen == [*range(1, 42)]
        learner.save()
        resumed = make_learner(tmp_path)
        assert resumed.restore()
        seen = watched(resumed, monkeypatch)
        while resumed.learn_block().samples:
            pass
        assert (resumed.last_seq, resumed.score.total, seen) == (120, 120, [])
