"""Memory: balanced, random within a class, the same each time; what leaves the store leaves it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.learning.replay import ReplayMemory
from daemon.store import StoredSample

CLASSES = 5
ROOM = 1 << 20


class FakeStore:
    """The two questions that memory asks, and rows by their numbers."""

    def __init__(self, samples: list[StoredSample]) -> None:
        self.rows = {sample.seq: sample for sample in samples}
        self.gone = 0
        self.asked = 0

    def departures(self) -> int:
        return self.gone

    def departed(self, seqs: list[int]) -> list[int]:
        self.asked += 1
        return [seq for seq in seqs if seq not in self.rows]

    def samples(self, seqs: list[int]) -> list[StoredSample]:
        return [self.rows[seq] for seq in seqs if seq in self.rows]

    def remove(self, seqs: list[int]) -> None:
        for seq in seqs:
            del self.rows[seq]
            self.gone += 1


def stream(places: list[int], size: int = 4) -> list[StoredSample]:
    return [StoredSample(seq, place, "uint8", bytes(size)) for seq, place in enumerate(places, 1)]


def memory_of(
    samples: list[StoredSample], most: int, seed: int = 0, max_bytes: int = ROOM
) -> ReplayMemory:
    memory = empty(FakeStore(samples), most, seed, max_bytes)
    memory.add(samples)
    return memory


def empty(store: FakeStore, most: int, seed: int = 0, max_bytes: int = ROOM) -> ReplayMemory:
    return ReplayMemory(
        store, seed=seed, max_classes=CLASSES, max_samples=most, max_bytes=max_bytes
    )


def counts(memory: ReplayMemory) -> list[int]:
    return np.bincount([s.class_index for s in memory.samples], minlength=CLASSES).tolist()


def balanced(seen: list[int], most: int) -> int:
    """How many of the largest class the fairest division of `most` places among classes has."""
    share = 0
    while sum(min(n, share + 1) for n in seen) <= most and share < max(seen):
        share += 1
    return share


STREAMS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=300)


@given(STREAMS, st.integers(1, 60))
def test_classes_are_as_equal_as_the_stream_allows(places: list[int], most: int) -> None:
    memory = memory_of(stream(places), most)
    seen = np.bincount(places, minlength=CLASSES).tolist()
    held, share = counts(memory), balanced(seen, most)
    assert sum(held) == len(memory) == min(most, len(places))
    for number, there_were in zip(held, seen, strict=True):
        assert min(there_were, share) <= number <= share + 1


@given(STREAMS, st.integers(1, 60), st.integers(0, 300), st.integers(0, 2**63 - 1))
def test_resumed_anywhere_it_is_as_if_never_stopped(
    places: list[int], most: int, cut: int, seed: int
) -> None:
    samples = stream(places)
    steady = memory_of(samples, most, seed)
    stopped = empty(FakeStore(samples), most, seed)
    stopped.add(samples[:cut])
    resumed = empty(FakeStore(samples), most, seed)
    resumed.load(stopped.state())
    resumed.settle()
    resumed.add(samples[cut:])
    assert resumed.samples == steady.samples
    for name, array in steady.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)
    numbers = [np.random.default_rng(1) for _ in range(2)]
    assert resumed.draw(numbers[0], 20) == steady.draw(numbers[1], 20)


@given(
    STREAMS,
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=5),
)
def test_what_leaves_the_store_leaves_memory_before_the_next_block(
    places: list[int], most: int, departures: list[tuple[int, int]]
) -> None:
    samples = stream(places)
    store = FakeStore(samples)
    memory = empty(store, most)
    done = 0
    for until, gone in sorted(departures):
        memory.settle()
        memory.add([s for s in samples[done:until] if s.seq in store.rows])
        done = max(done, until)
        store.remove([gone] if gone in store.rows else [])
        memory.settle()
        assert {s.seq for s in memory.samples} <= set(store.rows)
        assert len(memory) == len(memory.samples) <= most


def test_the_store_is_asked_for_each_row_only_after_something_has_left_it() -> None:
    samples = stream([0, 1] * 10)
    store = FakeStore(samples)
    memory = empty(store, 20)
    for block in (samples[:10], samples[10:]):
        memory.settle()
        memory.add(block)
    assert store.asked == 1  # the first time: it may have been loaded
    store.remove([3])
    memory.settle()
    memory.settle()
    assert store.asked == 2


@given(st.lists(st.tuples(st.integers(0, CLASSES - 1), st.booleans()), max_size=200))
def test_bytes_are_bounded_where_samples_are_larger_and_smaller(
    kinds: list[tuple[int, bool]],
) -> None:
    samples = [
        StoredSample(seq, place, "float32" if large else "uint8", bytes(64 if large else 16))
        for seq, (place, large) in enumerate(kinds, 1)
    ]
    memory = memory_of(samples, 1000, max_bytes=400)
    held = sum(len(sample.features) for sample in memory.samples)
    assert held <= 400
    if sum(len(sample.features) for sample in samples) > 400:
        assert held > 400 - 64


def test_a_sample_larger_than_memory_is_passed_by() -> None:
    assert not memory_of(stream([0, 1], size=65), 10, max_bytes=64).samples


@pytest.mark.parametrize("first", [0, 400])
def test_what_is_held_of_a_class_is_a_random_part_of_it(first: int) -> None:
    """Over 500 seeds, of 400 of the class in all 20 are held; others come before, or between.

    A tenth of the class has 40 places in 500 x 20; its number is binomial (n = 10,000, p = 0.1,
    deviation 30), so that beyond 5 deviations lies one run of a million.
    """
    others = [1] * first + [2] * first
    mixed = np.random.default_rng(7).permutation([0] * 400 + [3] * 400).tolist()
    samples = stream(others + mixed)
    ranks = {s.seq: rank for rank, s in enumerate(s for s in samples if s.class_index == 0)}
    most = 80 if first else 40
    found = np.zeros(10, int)
    for seed in range(500):
        held = [s.seq for s in memory_of(samples, most, seed).samples if s.class_index == 0]
        assert abs(len(held) - 20) <= 1
        found += np.bincount([ranks[seq] // 40 for seq in held], minlength=10)
    total = found.sum()
    deviation = np.sqrt(total * 0.1 * 0.9)
    assert (abs(found - total / 10) < 5 * deviation).all(), found


def test_a_class_that_lost_most_catches_up_and_stays_random() -> None:
    """Of class 0, 200 held of 2,000; then 180 are withdrawn while class 1 fills their places."""
    samples = stream([0, 1] * 2000 + [1] * 4000 + [0, 1] * 4000)
    store = FakeStore(samples)
    memory = empty(store, 400)
    memory.add(samples[:4000])
    store.remove([s.seq for s in memory.samples if s.class_index == 0][:180])
    memory.settle()
    memory.add(samples[4000:8000])
    assert counts(memory)[:2] == [20, 380]
    memory.add(samples[8000:])
    zero, one = counts(memory)[:2]
    assert zero + one == 400
    assert zero > 100  # 20 of 200 held, a tenth of the 4,000 that came since would be 400
    newest = sum(s.seq > 8000 for s in memory.samples if s.class_index == 0)
    assert newest / zero < 0.99  # not simply the newest


@pytest.mark.parametrize("most", [10, 300])
def test_each_class_is_drawn_as_often_as_any_other(most: int) -> None:
    """1,000 draws of 3 classes: a class is drawn 333 times, deviation 15; 5 of them is 75."""
    memory = memory_of(stream([0] * 200 + [1] * 20 + [2] * 3), most)
    drawn = memory.draw(np.random.default_rng(0), 1000)
    of_class = np.bincount([s.class_index for s in drawn], minlength=CLASSES)
    assert (abs(of_class[:3] - 1000 / 3) < 75).all()
    assert of_class[3:].sum() == 0
    assert {s.seq for s in drawn if s.class_index == 1} == {
        s.seq for s in memory.samples if s.class_index == 1
    }


def test_less_room_than_before_is_filled_evenly() -> None:
    samples = stream([0, 1, 1, 2] * 50)
    smaller = empty(FakeStore(samples), 30)
    smaller.load(memory_of(samples, 100).state())
    assert counts(smaller)[:3] == [10, 10, 10]


def test_nothing_is_drawn_from_an_empty_memory() -> None:
    memory = empty(FakeStore([]), 5)
    assert memory.draw(np.random.default_rng(0), 4) == []
    assert not memory.places.any()


def test_a_drift_puts_older_samples_of_the_classes_seen_since_out_of_date() -> None:
    before, since = stream([0] * 20 + [1] * 20 + [2] * 20), 61
    memory = memory_of(before, 60)
    block = [StoredSample(since + i, i % 2, "uint8", bytes(4)) for i in range(12)]
    memory.outdate(since, block[:8])
    assert counts(memory)[:3] == [20, 20, 20]  # 4 of each would be too few to go on with
    memory.outdate(since, block)
    memory.add(block)
    assert counts(memory)[:3] == [6, 6, 20]
    assert all(s.seq >= since for s in memory.samples if s.class_index < 2)
