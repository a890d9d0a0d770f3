"""What a step is made of: shares, the class places of each row, and nothing but (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest

from daemon.config import LearnerSettings
from daemon.learning.mix import StepMix
from daemon.learning.replay import ReplayMemory
from daemon.store import StoredSample
from tests.test_replay import CLASSES, FakeStore, empty, stream

SEEN = np.array([True, True, True, False, False])
BLOCK = [StoredSample(seq, 2, "uint8", b"new") for seq in range(100, 110)]


def memory(places: list[int]) -> ReplayMemory:
    samples = stream(places)
    held = empty(FakeStore(samples), 50)
    held.add(samples)
    return held


def mixed(mask: str, held: list[int], new: list[StoredSample], ratio: float = 0.25):
    settings = LearnerSettings(seed=3, mask=mask)
    return StepMix(new, memory(held), SEEN, settings).rows(7, 16, ratio)


@pytest.mark.parametrize(("ratio", "fresh"), [(0.25, 4), (0.5, 8), (1.0, 16), (0.001, 1)])
def test_new_samples_come_first_in_their_share(ratio: float, fresh: int) -> None:
    rows, _ = mixed("seen", [0, 1, 2], BLOCK, ratio)
    assert [row.features == b"new" for row in rows] == [True] * fresh + [False] * (16 - fresh)


def test_without_memory_all_rows_are_new_and_without_new_ones_all_are_replayed() -> None:
    assert [row.features for row in mixed("seen", [], BLOCK)[0]] == [b"new"] * 16
    rows, places = mixed("new", [0, 1, 2], [])
    assert [row.features for row in rows] == [bytes(4)] * 16
    assert places is not None
    assert (places == SEEN).all()


def test_no_row_is_told_apart_from_a_class_that_was_never_seen() -> None:
    rows, places = mixed("seen", [0, 1, 2], BLOCK)
    assert places is not None
    assert places.shape == (len(rows), CLASSES)
    assert (places == SEEN).all()


def test_new_rows_are_told_apart_from_the_new_classes_alone_while_memory_has_all() -> None:
    _, places = mixed("new", [0, 1, 2], BLOCK)
    assert places is not None
    assert (places[:4] == [False, False, True, False, False]).all()
    assert (places[4:] == SEEN).all()
    _, places = mixed("new", [0, 2], BLOCK)  # nothing else keeps class 1 apart
    assert places is not None
    assert (places == SEEN).all()


@pytest.mark.parametrize("mask", ["seen", "new"])
def test_a_class_that_was_never_learned_and_can_be_answered_is_pushed_down(mask: str) -> None:
    learned = np.array([True, False, True, False, False])
    _, places = StepMix(BLOCK, memory([0, 2]), learned, LearnerSettings(seed=3, mask=mask)).rows(
        7, 16, 0.25
    )
    assert places is not None
    assert (places[4:] == SEEN).all()
    assert (places[:4] == [mask == "seen", True, True, False, False]).all()


def test_without_a_mask_all_places_count() -> None:
    assert mixed("off", [0, 1, 2], BLOCK)[1] is None


def test_a_step_depends_on_seed_and_number_alone() -> None:
    held = memory([0, 1, 2] * 20)
    first = StepMix(BLOCK, held, SEEN, LearnerSettings(seed=3))
    first.rows(6, 16, 0.25)
    again = StepMix(BLOCK, held, SEEN, LearnerSettings(seed=3))
    assert first.rows(7, 16, 0.25)[0] == again.rows(7, 16, 0.25)[0]
    assert first.rows(8, 16, 0.25)[0] != again.rows(7, 16, 0.25)[0]
