"""Memory: the samples that are drawn again beside new ones, as many of each class as there is room.

A class-balanced reservoir (Chrysakis and Moens 2020, "Online continual learning from imbalanced
data", CBRS). While there is room everything goes in. After that, of a sample's class c, of which
`held` are in memory out of `seen`:

    c has lost none, and is not a largest class  it takes the place of a random one of the largest
    c has lost some, and is more than 1 behind   the same, with probability held / seen
    else                                         of a random one of its own, as probably

so that classes are as equal as the stream allows, and what is held of a class is a random part of
it. The second line is ours: there is no way there but by withdrawals, and it keeps the part random
while the class catches up. What leaves the store leaves memory, and `seen` shrinks in proportion;
so does what a drift has put out of date. The room that this makes lets the next sample in for
certain, so that under retention, which takes the oldest, memory leans to the newest: of what is
still stored, the newest quarter has 30 to 35 % of it, the oldest 17 to 20 % (simulated).

Choices depend on (seed, seq) alone: words of SplitMix64 (Steele, Lea and Flood 2014). What the rows
hold is kept beside their numbers, but is not state: after a restart it is read from the store.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from daemon.store import SampleReader, StoredSample

_WORD = 1 << 64
# Samples of a class since a drift, from which on those before it are let go.
_ENOUGH_SINCE = 5


class ReplayMemory:
    """Holds samples to draw replay from.

    Args:
        reader: The store, asked what still counts.
        seed: Keys the choices.
        max_classes: Class places.
        max_samples: Most samples held.
        max_bytes: Most bytes of features held.
    """

    def __init__(
        self,
        reader: SampleReader,
        *,
        seed: int,
        max_classes: int,
        max_samples: int,
        max_bytes: int,
    ) -> None:
        self._reader = reader
        self._seed = seed
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._held: list[list[StoredSample]] = [[] for _ in range(max_classes)]
        self._seen = [0] * max_classes
        self._samples = self._bytes = 0
        self._departures: int | None = None  # of the store, when memory was last compared with it

    def __len__(self) -> int:
        return self._samples

    @property
    def samples(self) -> list[StoredSample]:
        """All that are held, class by class."""
        return [sample for held in self._held for sample in held]

    @property
    def places(self) -> NDArray[np.bool_]:
        """Of which class places any are held; bool `[max_classes]`."""
        return np.array([bool(held) for held in self._held])

    def settle(self) -> None:
        """Let go what no longer counts in the store: before each block, and before the new is read.

        One number says whether anything has left the store; only then is each row asked for.
        """
        departures = self._reader.departures()
        if departures != self._departures:
            self._forget(self._reader.departed([sample.seq for sample in self.samples]))
            self._departures = departures

    def outdate(self, change_seq: int, new: list[StoredSample]) -> None:
        """After a drift, let go what was labelled before it, of each class known well enough since.

        What lies before may contradict what is so now, and being most of each batch it would hold
        learning back for good. A class of which little came since keeps what it has.

        Args:
            change_seq: The first sample after the change.
            new: The block about to be added.
        """
        for place, held in enumerate(self._held):
            old = [sample.seq for sample in held if sample.seq < change_seq]
            since = len(held) - len(old) + sum(sample.class_index == place for sample in new)
            if since >= _ENOUGH_SINCE:
                self._forget(old)

    def add(self, new: list[StoredSample]) -> None:
        """Offer samples, in order of arrival; each is in memory afterwards or passed by."""
        for sample in new:
            self._offer(sample, _Choices(self._seed, sample.seq))

    def draw(self, numbers: np.random.Generator, count: int) -> list[StoredSample]:
        """Random samples, each class as likely as any other; none where memory is empty."""
        classes = [held for held in self._held if held]
        if not classes:
            return []
        drawn = numbers.integers(len(classes), size=count)
        places = numbers.random(count) * [len(classes[index]) for index in drawn]
        return [classes[i][int(place)] for i, place in zip(drawn, places, strict=True)]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Which rows are held, in order, and how many of each class were seen; for a checkpoint."""
        samples = self.samples
        return {
            "memory.seqs": np.array([sample.seq for sample in samples], np.int64),
            "memory.classes": np.array([sample.class_index for sample in samples], np.int64),
            "memory.seen": np.array(self._seen, np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Hold what `state` has told; rows that are no longer in the store are let go.

        Raises:
            KeyError: It is no such state.
        """
        seqs, classes = arrays["memory.seqs"].tolist(), arrays["memory.classes"].tolist()
        self._seen = arrays["memory.seen"].tolist()
        found = {sample.seq: sample for sample in self._reader.samples(seqs)}
        self._held = [[] for _ in self._seen]
        self._samples = self._bytes = 0
        self._departures = None
        for seq, place in zip(seqs, classes, strict=True):
            # A row that is gone stays in its class's count until it is let go as any other.
            self._append(found.get(seq) or StoredSample(seq, place, "uint8", b""))
        self._forget([seq for seq in seqs if seq not in found])
        while self._samples > self._max_samples or self._bytes > self._max_bytes:
            largest = self._largest()
            self._remove(largest, _Choices(self._seed, self._seen[largest]))

    def _offer(self, sample: StoredSample, choices: _Choices) -> None:
        place, size = sample.class_index, len(sample.features)
        if size > self._max_bytes:
            return
        self._seen[place] += 1
        if self._has_room(size):
            self._append(sample)
            return
        held, seen, largest = len(self._held[place]), self._seen[place], self._largest()
        most = len(self._held[largest])
        whole = held == seen - 1
        if not (whole and held < most) and not choices.happens(held, seen):
            return
        grows = held < most if whole else held + 1 < most
        self._remove(largest if grows else place, choices)
        while not self._has_room(size):  # it is larger than what it replaces
            self._remove(self._largest(), choices)
        self._append(sample)

    def _has_room(self, size: int) -> bool:
        return self._samples < self._max_samples and self._bytes + size <= self._max_bytes

    def _largest(self) -> int:
        return max(range(len(self._held)), key=lambda place: len(self._held[place]))

    def _append(self, sample: StoredSample) -> None:
        self._held[sample.class_index].append(sample)
        self._samples += 1
        self._bytes += len(sample.features)

    def _remove(self, place: int, choices: _Choices) -> None:
        held = self._held[place]
        index = choices.index(len(held))
        gone, held[index] = held[index], held[-1]
        held.pop()
        self._samples -= 1
        self._bytes -= len(gone.features)

    def _forget(self, seqs: list[int]) -> None:
        gone = set(seqs)
        if not gone:
            return
        for place, held in enumerate(self._held):
            kept = [sample for sample in held if sample.seq not in gone]
            if len(kept) < len(held):
                self._seen[place] = self._seen[place] * len(kept) // len(held)
                self._held[place] = kept
        samples = self.samples
        self._samples, self._bytes = len(samples), sum(len(s.features) for s in samples)


class _Choices:
    """Random numbers of one sample, one after the other."""

    def __init__(self, seed: int, seq: int) -> None:
        self._state = _mixed(seed ^ _mixed(seq))

    def happens(self, part: int, whole: int) -> bool:
        """True with probability part / whole."""
        return self._next() * whole < part * _WORD

    def index(self, count: int) -> int:
        """One of `count`."""
        return self._next() * count // _WORD

    def _next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) % _WORD
        return _mixed(self._state)


def _mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % _WORD
    return word ^ (word >> 31)
