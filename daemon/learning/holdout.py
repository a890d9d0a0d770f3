"""The samples that only score, and versions compared on them.

A decision is made on the newest of each class, equally many: the order in which samples came, and
how many a class has, then say nothing. A sorted stream, or a flood of one class, would else push
all others out of what is compared, and a candidate that has forgotten them would pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.learning.answers import OnPart, right_answers
from daemon.learning.shortage import shortage_named
from daemon.serving.gate import ClassScores, Scores
from daemon.store import SampleReader, StoredSample
from engines import PredictEngine, Weights


class Holdout:
    """The samples of the store that none of the versions has learned from.

    Args:
        reader: The store's samples.
        limit: Most of them that a decision is made on.
    """

    def __init__(self, reader: SampleReader, limit: int) -> None:
        self._reader = reader
        self._limit = limit

    def samples(self, after_seq: int = 0) -> list[StoredSample]:
        """The newest of each class, equally many, in order of arrival.

        A class that has fewer leaves its places to the others.

        Args:
            after_seq: None that came before, or with, this number.
        """
        counts = [
            self._reader.holdout_count(place, after_seq, self._limit)
            for place in range(len(self._reader.labels()))
        ]
        seqs: list[int] = []
        for place, share in enumerate(equal_shares(counts, self._limit)):
            seqs += self._reader.holdout_seqs(place, after_seq, share)
        return self._reader.samples(sorted(seqs))

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
            on_part: Called after each part of what is predicted.
            after_seq: As for `samples`.

        Raises:
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        samples, labels = self.samples(after_seq), self._reader.labels()
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
