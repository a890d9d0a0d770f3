"""Equal readings: what is decided on samples counts each reading once.

A sensor that stands still sends the same again and again, each a sample of its own. All are learned
and scored, but an answer to equal features is the same answer: counted as often as it comes, one
lucky or unlucky reading would pass the gate, end a probation or raise an alarm.

A reading is a sample's class and features. The same features under two labels are two, one of them
wrong: both count, in any order of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.store import StoredSample

# A reading that comes again after so many others is told from one that stands still: where few
# different ones can come at all, errors on them go on to count.
REPEATS_WITHIN = 32


def reading(sample: StoredSample) -> int:
    """64 bits that are equal for equal readings, in one process."""
    return hash((sample.class_index, sample.features))


def are_new(before: Sequence[StoredSample], samples: Sequence[StoredSample]) -> NDArray[np.bool_]:
    """Of which samples none of the 32 that came before each is the same reading; bool `[samples]`.

    Args:
        before: What came before the first of them, in order of arrival.
        samples: In order of arrival.
    """
    last: dict[int, int] = {}
    new = []
    for place, sample in enumerate([*before, *samples]):
        key = reading(sample)
        new.append(place - last.get(key, -REPEATS_WITHIN - 1) > REPEATS_WITHIN)
        last[key] = place
    return np.array(new[len(before) :], np.bool_)
