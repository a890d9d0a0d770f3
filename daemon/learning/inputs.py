"""Whether inputs still lie where the network was standardised for them, feature by feature.

A network's mean and standard deviation are those of the first block, and all it learns stands on
them. Where a sensor is turned, replaced, plugged in late, or was wild in that block, they fit no
longer: its values lie at the ends of the INT8 range, or all at one place of it. Labels are not
needed to see that. Of each feature (channel, where there are further axes) the mean of its z, the
standardised values cut off at 8, and their deviation say where it is:

    far      |mean| > 1.5 or deviation > 3
    narrow   0 < deviation < 1/3

What was a block far is standardised anew, from the newest samples and twice as many remembered
ones, if that leaves to old and new a third of the resolution each had: then both are answered, what
comes back is, too, and if it was a fault, nothing is lost by it. Where a quarter of the features
moves so, all are. This has to come before a drift alarm lets go of what memory holds: from the
newest alone, or a block later, what serves is right far less often (benchmarks/RECORDS.md).

Else, or where a feature is narrow, it is standardised after ten blocks, from the newest alone: a
fault ends before that, and a sensor that is now quiet, now loud stays as it is. Features that do
not vary in the newest samples stay, and all do while less than half of the known classes come, for
one class alone is narrow by nature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.store import StoredSample
from engines import Weights

_CUT = 8.0
_FAR, _WIDE, _NARROW = 1.5, 3.0, 1 / 3
_SOON, _LATE = 1.0, 10.0  # blocks in a row
_LEAST_RESOLUTION = 1 / 3
_WHOLE = 0.25  # of the features: then it is the world that has moved
_REMEMBERED = 2  # samples from memory for each new one
_OUTLIERS = 0.01  # as in engines/standardize.py
_VALUES = 1 << 20  # worked on at once
_FITTED_VALUES = 1 << 22
_NAME = "inputs"

Features = NDArray[np.bool_]  # [features or channels]


class InputWatch:
    """Follows where the features of a stream lie.

    Args:
        features: How many there are; channels, where there are further axes.
    """

    def __init__(self, features: int) -> None:
        # Rows: mean and mean square of z of late, blocks in a row that it was far, was narrow.
        self._state = np.zeros((4, features))
        self.fitted(np.ones(features, np.bool_))

    def add(self, x: NDArray[np.float32], weights: Weights, share: float) -> None:
        """Take in new samples.

        Args:
            x: float32 `[batch, *input_shape]`.
            weights: Their standardisation.
            share: How many samples they are, of a whole block; at most 1 counts.
        """
        share = min(1.0, share)
        mean, square, far, narrow = self._state
        found = _moments(x, weights, self._state.shape[1])
        mean += share * (found[0] - mean)
        square += share * (found[1] - square)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        for blocks, is_so in (
            (far, (np.abs(mean) > _FAR) | (deviation > _WIDE)),
            (narrow, (deviation > 0) & (deviation < _NARROW)),
        ):
            blocks[:] = np.where(is_so, blocks + share, 0)

    @property
    def moved(self) -> bool:
        """Whether anything has been far or narrow for long enough to look closer."""
        _, _, far, narrow = self._state
        return bool((far >= _SOON).any() or (narrow >= _LATE).any())

    def to_fit(
        self, older: NDArray[np.float32], newest: NDArray[np.float32], weights: Weights
    ) -> tuple[Features, Features]:
        """What to standardise from older and newest samples, and what from the newest alone.

        Args:
            older: float32 `[batch, *input_shape]`; may be empty.
            newest: The same.
            weights: The standardisation that holds: older samples may be of both worlds already.
        """
        _, _, far, narrow = self._state
        alone, both = _deviations(newest), _deviations(np.concatenate([older, newest]))
        before = weights.arrays["input.std"].reshape(len(alone), -1).mean(axis=1)
        is_new = _deviations(older) == 0 if len(older) else np.ones_like(alone, np.bool_)
        varies = alone > 0
        moved = (far >= _SOON) & varies
        together = np.zeros_like(moved)
        if moved.any() and _both_fit(alone[moved], before[moved], both[moved], is_new[moved]):
            together = both > 0 if moved.mean() >= _WHOLE else moved
        return together, ((far >= _LATE) | (narrow >= _LATE)) & varies & ~together

    def fitted(self, features: Features) -> None:
        """These are standardised anew."""
        self._state[:, features] = np.array([[0.0], [1.0], [0.0], [0.0]])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All of it, as arrays."""
        return {_NAME: self._state}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from `state`, in which there may be more than this.

        Raises:
            KeyError: There is less.
        """
        self._state = arrays[_NAME].astype(np.float64)


def _both_fit(
    alone: NDArray[np.float64],
    before: NDArray[np.float64],
    both: NDArray[np.float64],
    is_new: Features,
) -> bool:
    """Whether a standardisation for both leaves enough of each, on average over features."""
    old = np.where(is_new, 1.0, before / both).mean()
    return min(float(old), float((alone / both).mean())) >= _LEAST_RESOLUTION


def rows_to_fit(
    memory: Sequence[StoredSample], new: Sequence[StoredSample], block_samples: int, features: int
) -> tuple[list[StoredSample], list[StoredSample]]:
    """What to standardise from: older samples evenly out of memory, and the newest block.

    Args:
        memory: Remembered samples.
        new: The newest ones, of which memory may hold some.
        block_samples: How many of the newest; fewer, where samples are large.
        features: Values of a sample.

    Returns:
        Older and newest; none of either where the newest are of less than half of the classes.
    """
    held = {sample.seq: sample for sample in (*memory, *new)}
    ordered = [held[seq] for seq in sorted(held)]
    most = max(1, min(block_samples, _FITTED_VALUES // (features * (_REMEMBERED + 1))))
    older, newest = ordered[:-most], ordered[-most:]
    known = {sample.class_index for sample in ordered}
    if 2 * len({sample.class_index for sample in newest}) < len(known):
        return [], []
    step = max(1, -(-len(older) // (_REMEMBERED * len(newest))))
    return older[::step], newest


def _moments(x: NDArray[np.float32], weights: Weights, features: int) -> NDArray[np.float64]:
    """Mean and mean square of z, float64 `[2, features]`."""
    rows = x.reshape(len(x), -1)
    mean, std = (weights.arrays[f"input.{name}"].astype(np.float32) for name in ("mean", "std"))
    sums = np.zeros((2, rows.shape[1]))
    step = max(1, _VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        with np.errstate(over="ignore"):  # beyond float32 is beyond the cut, too
            z = (rows[start : start + step] - mean) / std
        np.clip(z, -_CUT, _CUT, out=z)
        sums[0] += z.sum(axis=0, dtype=np.float64)
        sums[1] += np.square(z, out=z).sum(axis=0, dtype=np.float64)
    return np.asarray(sums.reshape(2, features, -1).mean(axis=2) / len(x))


def _deviations(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Winsorised standard deviation of each feature, float64 `[features]`."""
    values = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    low, high = np.quantile(values, (_OUTLIERS, 1 - _OUTLIERS), axis=1, keepdims=True)
    return np.asarray(np.clip(values, low, high).std(axis=1, dtype=np.float64))
