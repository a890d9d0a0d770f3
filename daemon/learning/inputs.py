"""Whether inputs still lie where the network was standardised for them.

A network's mean and standard deviation are those of the first block, and all it learns stands on
them. Where a sensor is turned, moved or replaced they fit no longer: values lie at the ends of the
INT8 range, or all in its middle. Labels are not needed to see that: the mean of |z|, z being the
standardised inputs, was `fitted` on the samples that it was standardised from. At twice or half of
that it is standardised anew, from the newest samples and twice as many remembered ones. Not from
the newest alone: what was learned before is then still answered, and so is what comes back. But if
old and new lie so far apart (another unit) that less than a third of its own resolution would be
left to the new, from that alone.

On MNIST (mlp 100-100, memory 300, seeds 10 and 11), inputs inverted at half: 85.1 % right at the
end for 75.8, back at the level before after 882 samples for never. Tried from the newest alone:
86.1 %, but 48.7 % of the answers served are right for 61.4 with both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.store import StoredSample
from engines import INPUT_CLIP, Weights

_FACTOR = 2.0
_REMEMBERED = 2  # samples from memory for each new one
_LEAST_RESOLUTION = 1 / 3


def spread(weights: Weights, x: NDArray[np.float32]) -> float:
    """Mean of |z| over samples and features, each at most 4.

    Args:
        weights: With a standardisation.
        x: float32 `[batch, *input_shape]`.
    """
    mean, std = (weights.arrays[f"input.{name}"].astype(np.float64) for name in ("mean", "std"))
    z = np.abs((x.reshape(len(x), -1) - mean) / std)
    return float(np.minimum(z, INPUT_CLIP).mean())


class InputWatch:
    """Follows the spread of a stream.

    Args:
        fitted: Of the samples that the network was standardised from.
        now: Where it stands; as a rule `fitted`.
    """

    def __init__(self, fitted: float = 0.0, now: float = 0.0) -> None:
        self.fitted, self.now = fitted, now

    def moved(self, found: float, share: float) -> bool:
        """Take in new samples.

        Args:
            found: Their spread.
            share: How many they are, of a whole block; a few wild ones move nothing.

        Returns:
            Whether the standardisation fits no longer.
        """
        self.now += min(1.0, share) * (found - self.now)
        return self.now > _FACTOR * self.fitted or self.now < self.fitted / _FACTOR


def rows_to_fit(
    memory: Sequence[StoredSample], new: Sequence[StoredSample], block_samples: int
) -> tuple[list[StoredSample], list[StoredSample]]:
    """What to standardise from: older samples evenly out of memory, and the newest block.

    Args:
        memory: Remembered samples.
        new: The newest ones, of which memory may hold some.
        block_samples: How many of the newest.
    """
    held = {sample.seq: sample for sample in (*memory, *new)}
    ordered = [held[seq] for seq in sorted(held)]
    older, newest = ordered[:-block_samples], ordered[-block_samples:]
    step = max(1, -(-len(older) // (_REMEMBERED * len(newest))))
    return older[::step], newest


def tell_apart(older: NDArray[np.float32], newest: NDArray[np.float32]) -> bool:
    """Whether the newest samples still differ enough once they share a standardisation.

    Args:
        older: float32 `[batch, *input_shape]`; may be empty.
        newest: The same; at least one.
    """
    axes = (0, *range(2, newest.ndim))
    both = np.concatenate([older, newest]).std(axis=axes, dtype=np.float64)
    alone = newest.std(axis=axes, dtype=np.float64)
    varies = alone > 0
    return not varies.any() or float((alone[varies] / both[varies]).mean()) >= _LEAST_RESOLUTION
