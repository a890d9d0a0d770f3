"""What the baselines remember: memories of a fixed size, told one sample at a time.

    newest       the last samples, whatever they are
    reservoir    each sample seen so far with equal probability (Vitter 1985, algorithm R)
    greedy       each class seen so far with equally many, first come (GDumb: Prabhu, Torr and
                 Dokania 2020, "GDumb: A Simple Approach that Questions Our Progress in Continual
                 Learning", algorithm 1)
    balanced     the largest class gives way, within a class a reservoir (CBRS: Chrysakis and Moens
                 2020, "Online Continual Learning from Imbalanced Data", algorithm 1)

Written apart from `daemon/learning/`, as what it is compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

import numpy as np


class Memory(ABC):
    """At most so many numbers of samples.

    Args:
        size: At most.
        seed: Of its choices.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.rows: list[int] = []
        self.labels: list[int] = []

    @abstractmethod
    def add(self, row: int, label: int) -> None:
        """Tell it the next sample.

        Args:
            row: The sample's number.
            label: Its class.
        """

    def put(self, row: int, label: int, place: int | None) -> None:
        """Keep a sample, in place of another; None: beside them."""
        if place is None:
            self.rows.append(row)
            self.labels.append(label)
        else:
            self.rows[place], self.labels[place] = row, label

    def one_of(self, label: int) -> int:
        """Place of a random sample of a class."""
        return int(self.random.choice([p for p, held in enumerate(self.labels) if held == label]))


class Nothing(Memory):
    """Remembers nothing."""

    def add(self, row: int, label: int) -> None:
        """See `Memory.add`."""


class Newest(Memory):
    """The last samples."""

    def add(self, row: int, label: int) -> None:
        """See `Memory.add`."""
        self.put(row, label, None)
        del self.rows[: -self.size], self.labels[: -self.size]


class Reservoir(Memory):
    """Every sample seen so far with equal probability.

    Args:
        size: At most.
        seed: Of its choices.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self._seen = 0

    def add(self, row: int, label: int) -> None:
        """See `Memory.add`."""
        self._seen += 1
        if len(self.rows) < self.size:
            self.put(row, label, None)
        elif (place := int(self.random.integers(self._seen))) < self.size:
            self.put(row, label, place)


class Greedy(Memory):
    """Equally many of each class seen so far, the first that came."""

    def add(self, row: int, label: int) -> None:
        """See `Memory.add`."""
        held = Counter(self.labels)
        classes = len(held | Counter([label]))
        if held[label] * classes >= self.size:
            return
        if len(self.rows) < self.size:
            self.put(row, label, None)
        else:
            largest = max(held, key=held.__getitem__)
            self.put(row, label, self.one_of(largest))


class Balanced(Memory):
    """The largest class gives way; within a class, a reservoir.

    Args:
        size: At most.
        seed: Of its choices.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self._seen: Counter[int] = Counter()
        self._full: set[int] = set()  # classes that have been the largest of a full memory

    def add(self, row: int, label: int) -> None:
        """See `Memory.add`."""
        self._seen[label] += 1
        if len(self.rows) < self.size:
            self.put(row, label, None)
            return
        held = Counter(self.labels)
        most = max(held.values())
        largest = [name for name, count in held.items() if count == most]
        self._full.update(largest)
        if label not in self._full:
            self.put(row, label, self.one_of(int(self.random.choice(largest))))
        elif self.random.random() <= held[label] / self._seen[label]:
            self.put(row, label, self.one_of(label))
