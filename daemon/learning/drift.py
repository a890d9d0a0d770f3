"""Drift: the learner begins to be wrong more often than it was, on classes that it knows.

ADWIN (Bifet and Gavalda 2007, "Learning from time-changing data with adaptive windowing") over the
0/1 errors of progressive validation. The window is buckets of 1, 2, 4, ... errors, at most 5 of a
size, so that n errors take some 5 log2(n) buckets. It is cut where two parts of it, n0 old and n1
new errors with means u0 and u1, differ by more than chance allows:

    |u0 - u1| > sqrt(2 v L / m) + 2 L / (3 m),    L = ln(2 ln(n) / delta),    v = u (1 - u),
    1 / m = 1 / (n0 - 4) + 1 / (n1 - 4),          n0, n1 >= 5

as its authors' own code has it (MOA), looked at after every 32nd sample. Differs from the paper: it
is cut at once where the two parts differ most beyond chance, and not bucket by bucket from its old
end, so that the window then begins where the change is thought to be; and a cut where errors have
become fewer is no alarm, since that is what learning does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BUCKETS_OF_A_SIZE = 5
_CLOCK = 32
_LEAST_PART = 5
_LEAST_WINDOW = 10
# Before so many of its samples were seen, a class is new: its errors are no drift.
NEW_CLASS_SAMPLES = 30


class Adwin:
    """An adaptive window over errors.

    Args:
        delta: Chance of a cut where nothing has changed, at each look.
    """

    def __init__(self, delta: float) -> None:
        self._delta = delta
        # Oldest first, larger before smaller: how many, of them errors, and the first one's seq.
        self._buckets: list[tuple[int, int, int]] = []
        self._added = 0

    @property
    def errors(self) -> tuple[int, int]:
        """How many are in the window, and of them errors."""
        return sum(n for n, _, _ in self._buckets), sum(wrong for _, wrong, _ in self._buckets)

    @property
    def since(self) -> int | None:
        """Where the window begins: the `seq` of its oldest; None while it is empty."""
        return self._buckets[0][2] if self._buckets else None

    def add(self, wrong: bool, seq: int) -> bool:
        """Add one; True: errors have become more frequent, and the window begins at the change."""
        self._buckets.append((1, int(wrong), seq))
        self._compress()
        self._added += 1
        return self._added % _CLOCK == 0 and self._cut()

    def state(self) -> NDArray[np.int64]:
        """Buckets and a last row for the rest, int64 `[buckets + 1, 3]`."""
        return np.array([*self._buckets, (self._added % _CLOCK, 0, 0)], np.int64)

    def load(self, state: NDArray[np.int64]) -> None:
        """Go on from `state`."""
        *buckets, (self._added, _, _) = state.tolist()
        self._buckets = [(n, wrong, seq) for n, wrong, seq in buckets]

    def _compress(self) -> None:
        buckets, end, size = self._buckets, len(self._buckets), 1
        while True:
            first = end
            while first and buckets[first - 1][0] == size:
                first -= 1
            if end - first <= _BUCKETS_OF_A_SIZE:
                return
            (n, wrong, seq), (n_next, wrong_next, _) = buckets[first : first + 2]
            buckets[first : first + 2] = [(n + n_next, wrong + wrong_next, seq)]
            end, size = first + 1, 2 * size

    def _cut(self) -> bool:
        rose = False
        while (found := self._widest_difference()) is not None:
            buckets, rises = found
            rose |= rises
            del self._buckets[:buckets]
        return rose

    def _widest_difference(self) -> tuple[int, bool] | None:
        """How many old buckets differ most from the rest, and whether that has more errors."""
        total, wrong = self.errors
        if total <= _LEAST_WINDOW:
            return None
        mean = wrong / total
        log_term = math.log(2 * math.log(total) / self._delta)
        widest, found = 1.0, None
        old, old_wrong = 0, 0
        for number, (n, part_wrong, _) in enumerate(self._buckets[:-1], 1):
            old, old_wrong = old + n, old_wrong + part_wrong
            new = total - old
            if old < _LEAST_PART or new < _LEAST_PART:
                continue
            least = _LEAST_PART - 1
            m_inverse = 1 / (old - least) + 1 / (new - least)
            spread = 2 * m_inverse * mean * (1 - mean) * log_term
            chance = math.sqrt(spread) + 2 / 3 * log_term * m_inverse
            rise = (wrong - old_wrong) / new - old_wrong / old
            if abs(rise) > widest * chance:
                widest, found = abs(rise) / chance, (number, rise > 0)
        return found


class DriftWatch:
    """Looks at each block's errors before the block is learned.

    Args:
        max_classes: Class places.
        delta: Of `Adwin`.
    """

    def __init__(self, max_classes: int, delta: float) -> None:
        self._adwin = Adwin(delta)
        self._seen = np.zeros(max_classes, np.int64)

    def add(
        self, wrong: NDArray[np.bool_], labels: NDArray[np.int64], seqs: list[int]
    ) -> int | None:
        """Add a block's errors.

        Args:
            wrong: Whether each answer was wrong, bool `[samples]`.
            labels: Class places.
            seqs: Where in the order of arrival.

        Returns:
            The sequence number where errors have become more frequent, if they have.
        """
        change = None
        for error, label, seq in zip(wrong.tolist(), labels.tolist(), seqs, strict=True):
            self._seen[label] += 1
            if self._seen[label] > NEW_CLASS_SAMPLES and self._adwin.add(error, seq):
                change = self._adwin.since
        return change

    def state(self) -> dict[str, NDArray[np.generic]]:
        """For a checkpoint."""
        return {"drift.window": self._adwin.state(), "drift.seen": self._seen.copy()}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`.

        Raises:
            KeyError: It is no such state.
        """
        self._adwin.load(arrays["drift.window"].astype(np.int64))
        self._seen = arrays["drift.seen"].astype(np.int64)
