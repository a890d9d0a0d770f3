"""The samples that only score, and versions compared on them.

A decision is made on the newest of each class, equally many: the order in which samples came, and
how many a class has, then say nothing. A sorted stream, or a flood of one class, would else push
all others out of what is compared, and a candidate that has forgotten them would pass. So would
copies of one reading (`readings.py`): each counts once, and is looked behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.learning.answers import OnPart, right_answers
from daemon.learning.readings import reading
from daemon.learning.shortage import shortage_named
from daemon.serving.gate import ClassScores, Scores
from daemon.store import SampleReader, StoredSample
from engines import PredictEngine, Weights

# Rows that are looked at for different readings, in equal shares of all classes; what they are
# takes 30 MB where almost all are copies. Beyond its share a class counts with those found.
_LOOKED_AT = 200_000
_READ_TOGETHER = 64


def _nobody() -> None:
    """Nobody waits for a sign of life."""


class Holdout:
    """The samples of the store that none of the versions has learned from.

    Args:
        reader: The store's samples.
        limit: Most of them that a decision is made on.
    """

    def __init__(self, reader: SampleReader, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        # By class place and seq, of the rows that were looked at last: known, they are not read
        # again to be looked behind.
        self._readings: dict[int, dict[int, int]] = {}

    def samples(self, after_seq: int = 0, on_part: OnPart = _nobody) -> list[StoredSample]:
        """The newest different readings of each class, equally many, in order of arrival.

        A class that has fewer leaves its places to the others.

        Args:
            after_seq: None that came before, or with, this number.
            on_part: Called after each part of the copies that are looked behind.
        """
        places = range(len(self._reader.labels()))
        most = max(self._limit, _LOOKED_AT)
        counts = [self._reader.holdout_count(place, after_seq, most) for place in places]
        looks = equal_shares(counts, _LOOKED_AT)
        self._readings = {place: rows for place, rows in self._readings.items() if looks[place]}
        found: list[list[int]] = [[] for _ in places]
        while True:
            shares = equal_shares(counts, self._limit)
            short = []
            for place, share in enumerate(shares):
                if len(found[place]) < share:
                    most = max(share, looks[place])
                    found[place] = self._different(place, after_seq, share, most, on_part)
                if len(found[place]) < share:
                    short.append(place)
            if not short:
                break
            for place in short:  # its places go to the others
                counts[place] = len(found[place])
        seqs = [seq for newest, share in zip(found, shares, strict=True) for seq in newest[:share]]
        return self._reader.samples(sorted(seqs))

    def _different(
        self, place: int, after_seq: int, count: int, most: int, on_part: OnPart
    ) -> list[int]:
        """The newest row of each of so many different readings of a class, the newest first.

        Fewer where there are no more among the `most` rows that may be looked at.
        """
        known = self._readings.pop(place, {})
        asked = min(max(count, len(known)), most)
        while True:
            seqs = self._reader.holdout_seqs(place, after_seq, asked)
            unread = [seq for seq in seqs if seq not in known]
            for start in range(0, len(unread), _READ_TOGETHER):
                rows = self._reader.samples(unread[start : start + _READ_TOGETHER])
                known |= {row.seq: reading(row) for row in rows}
                if asked > count:  # a long stillness takes long to read
                    on_part()
            newest: dict[int, int] = {}
            needed = 0
            for seq in seqs:
                if len(newest) == count:
                    break
                needed += 1
                if seq in known:  # else it is damaged, or gone meanwhile
                    newest.setdefault(known[seq], seq)
            if len(newest) == count or len(seqs) < asked or asked >= most:
                break
            asked = min(4 * asked, most)
        # More than were needed, so that a few copies more do not have old rows read again.
        self._readings[place] = {seq: known[seq] for seq in seqs[: 2 * needed] if seq in known}
        return [*newest.values()]

    def compare(
        self,
        candidate: Weights,
        incumbent: Weights,
        others: Sequence[Weights],
        open_predict: Callable[[Weights], PredictEngine],
        on_part: OnPart,
        *,
        after_seq: int = 0,
    ) -> Scores:
        """The versions' right answers on the same samples.

        Args:
            candidate: Proposed.
            incumbent: Serves.
            others: The best of all so far and the newest good one: that of them counts which is
                right most often now.
            open_predict: Opens what answers.
            on_part: Called after each part of what is read and predicted.
            after_seq: As for `samples`.

        Raises:
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        samples, labels = self.samples(after_seq, on_part), self._reader.labels()
        held = Counter(sample.class_index for sample in samples)
        places = {label: place for place, label in enumerate(labels)}
        missing = tuple(label for label in candidate.classes if not held[places.get(label, -1)])
        if not samples:
            return Scores(0, 0, 0, 0, missing=missing)
        _, truth = batch = self._reader.batch(samples)
        right: dict[int, NDArray[np.bool_]] = {}
        for weights in (incumbent, candidate, *others):
            if weights.version in right:  # the best one often is the one that serves
                continue
            with shortage_named():
                right[weights.version] = right_answers(
                    weights, open_predict, batch, labels, on_part
                )
        was, now = right[incumbent.version], right[candidate.version]
        top = max((right[weights.version] for weights in others), key=np.count_nonzero)

        def by_class(hits: NDArray[np.bool_]) -> tuple[int, ...]:
            counts = np.bincount(truth[hits], minlength=len(labels))
            return tuple(int(counts[place]) for place in sorted(held))

        return Scores(
            len(samples),
            int(was.sum()),
            int(top.sum()),
            int(now.sum()),
            candidate_alone=int((now & ~was).sum()),
            incumbent_alone=int((was & ~now).sum()),
            classes=ClassScores(
                tuple(labels[place] for place in sorted(held)),
                tuple(held[place] for place in sorted(held)),
                by_class(was),
                by_class(top),
                by_class(now),
            ),
            missing=missing,
        )


def equal_shares(counts: Sequence[int], limit: int) -> list[int]:
    """How many of each to take: as many as there are, but equally many where that is too many.

    Args:
        counts: How many there are of each.
        limit: Most to take of all.
    """
    shares = [0] * len(counts)
    left = limit
    smallest_first = sorted(range(len(counts)), key=lambda index: counts[index])
    for taken, index in enumerate(smallest_first):
        shares[index] = min(counts[index], left // (len(counts) - taken))
        left -= shares[index]
    return shares
