"""Drift: the learner begins to be wrong more often than it was, on classes that it knows.

ADWIN (Bifet and Gavalda 2007, "Learning from time-changing data with adaptive windowing") over the
0/1 errors of progressive validation. The window is buckets of 1, 2, 4, ... errors, at most 5 of a
size, so that n errors take some 5 log2(n) buckets. It is cut where two parts of it, n0 old and n1
new errors with means u0 and u1, differ by more than chance allows:

    |u0 - u1| > sqrt(2 v L / m) + 2 L / (3 m),    L = ln(2 ln(n) / delta),    v = u (1 - u)

looked at after every 32nd sample. Some classes are harder than others, and a stream may come in
runs of them, so the parts are compared class by class, as Mantel and Haenszel (1959) compare groups
of unlike make-up: with n0, n1, u0, u1, u of each class and weights w = n0 n1 / (n0 + n1), u0 - u1
and v are means over classes by w, and m + 4 is the sum of w. Which classes come more often now says
nothing; a class that only one part has says nothing either.

Differs from the paper in this, and: it is cut at once where the two parts differ most beyond
chance, and not bucket by bucket from its old end, so that the window then begins where the change
is thought to be; and a cut where errors have become fewer is no alarm, since that is what learning
does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BUCKETS_OF_A_SIZE = 5
_CLOCK = 32
# What m falls short of the weights, as in the code of ADWIN's authors (MOA): small parts mislead.
_LEAST_WEIGHT = 4
# Before so many of its samples were seen, a class is new: its errors are no drift.
NEW_CLASS_SAMPLES = 30


@dataclass
class _Bucket:
    """One bucket.

    Args:
        size: How many are in it.
        seq: The first one's.
        classes: Of each class how many, and of them errors; `[2, max_classes]`.
    """

    size: int
    seq: int
    classes: NDArray[np.int64]


class Adwin:
    """An adaptive window over errors.

    Args:
        max_classes: Class places.
        delta: Chance of a cut where nothing has changed, at each look.
    """

    def __init__(self, max_classes: int, delta: float) -> None:
        self._max_classes = max_classes
        self._delta = delta
        self._buckets: list[_Bucket] = []  # oldest first, larger before smaller
        self._added = 0

    @property
    def errors(self) -> tuple[int, int]:
        """How many are in the window, and of them errors."""
        count = sum(bucket.size for bucket in self._buckets)
        return count, sum(int(bucket.classes[1].sum()) for bucket in self._buckets)

    @property
    def since(self) -> int | None:
        """Where the window begins: the `seq` of its oldest; None while it is empty."""
        return self._buckets[0].seq if self._buckets else None

    def add(self, wrong: bool, place: int, seq: int) -> bool:
        """Add one; True: errors have become more frequent, and the window begins at the change."""
        classes = np.zeros((2, self._max_classes), np.int64)
        classes[:, place] = 1, wrong
        self._buckets.append(_Bucket(1, seq, classes))
        self._compress()
        self._added += 1
        return self._added % _CLOCK == 0 and self._cut()

    def state(self) -> NDArray[np.int64]:
        """Of each bucket's classes seq, class, how many, errors; a last row for the rest."""
        rows = [
            (bucket.seq, place, *bucket.classes[:, place].tolist())
            for bucket in self._buckets
            for place in np.flatnonzero(bucket.classes[0]).tolist()
        ]
        return np.array([*rows, (self._added % _CLOCK, 0, 0, 0)], np.int64)

    def load(self, state: NDArray[np.int64]) -> None:
        """Go on from `state`."""
        *rows, (self._added, _, _, _) = state.tolist()
        self._buckets = []
        for seq, place, count, wrong in rows:
            if self.since is None or self._buckets[-1].seq != seq:
                empty = np.zeros((2, self._max_classes), np.int64)
                self._buckets.append(_Bucket(0, seq, empty))
            self._buckets[-1].size += count
            self._buckets[-1].classes[:, place] = count, wrong

    def _compress(self) -> None:
        buckets, end, size = self._buckets, len(self._buckets), 1
        while True:
            first = end
            while first and buckets[first - 1].size == size:
                first -= 1
            if end - first <= _BUCKETS_OF_A_SIZE:
                return
            old, new = buckets[first : first + 2]
            merged = _Bucket(old.size + new.size, old.seq, old.classes + new.classes)
            buckets[first : first + 2] = [merged]
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
        if len(self._buckets) < 2:
            return None
        sums = np.cumsum([bucket.classes for bucket in self._buckets], axis=0, dtype=np.float64)
        sums = sums[:, :, sums[-1, 0] > 0]
        (total, wrong), (old, old_wrong) = sums[-1], sums[:-1].swapaxes(0, 1)
        new, new_wrong = total - old, wrong - old_wrong
        weights = old * new / total
        weight = weights.sum(1)
        # Of one class: weight times the difference of the means.
        rise = ((new_wrong * old - old_wrong * new) / total).sum(1)
        spread = (weights * (wrong / total * (1 - wrong / total))).sum(1)
        judged = weight > _LEAST_WEIGHT + 1
        if not judged.any():
            return None
        rise, spread, weight = rise[judged], spread[judged], weight[judged]
        m = weight - _LEAST_WEIGHT
        log_term = math.log(2 * math.log(total.sum()) / self._delta)
        chance = np.sqrt(2 * log_term * spread / weight / m) + 2 / 3 * log_term / m
        beyond = np.abs(rise) / weight / chance
        widest = int(beyond.argmax())
        if beyond[widest] <= 1:
            return None
        return int(np.flatnonzero(judged)[widest]) + 1, bool(rise[widest] > 0)


class DriftWatch:
    """Looks at each block's errors before the block is learned.

    Args:
        max_classes: Class places.
        delta: Of `Adwin`.
    """

    def __init__(self, max_classes: int, delta: float) -> None:
        self._adwin = Adwin(max_classes, delta)
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
            if self._seen[label] > NEW_CLASS_SAMPLES and self._adwin.add(error, label, seq):
                change = self._adwin.since
        return change

    def state(self) -> dict[str, NDArray[np.generic]]:
        """For a checkpoint."""
        return {"drift.buckets": self._adwin.state(), "drift.seen": self._seen.copy()}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`.

        Raises:
            KeyError: It is no such state.
        """
        self._adwin.load(arrays["drift.buckets"].astype(np.int64))
        self._seen = arrays["drift.seen"].astype(np.int64)
