"""Whether a version's values lie where those of healthy networks do; what has diverged does not.

Measured over all models, both objectives and all masters, untrained and trained, on labels that
were right, drawn at random, and all of one class (up to 5,000 steps, learning rates up to 0.01): no
weight, bias, scale or goodness was above 21, no array had more than 0.5 % of codes at the ends of
int8 beyond the one that each row has there, none had more than 2.9 % of zeros. Steps without bound
reach 1e12. At a learning rate of 1, the largest that can be set, an mlp diverges in 5 steps (loss
6,900, goodness 2,730) and is found; what recovers from that lies inside again. The limits leave
wide room, since a network that is merely worse is for the hold-out to find.
"""

from __future__ import annotations

import numpy as np

from engines.base import Weights, WeightsError

LARGEST_VALUE = 1000.0
LARGEST_SATURATED_SHARE = 0.25
LARGEST_ZERO_SHARE = 0.5
# In the sensor's own units, which may be any.
_OF_THE_SENSOR = ("input.mean", "input.std", "canary.input")


class OutOfRangeError(WeightsError):
    """A value is larger than any of a healthy network."""


class SaturatedError(WeightsError):
    """Weights lie at the ends of int8, or at zero, so that there is little between them."""


def check_health(weights: Weights) -> None:
    """Refuse values that no healthy network has.

    Args:
        weights: Checked already; see `Weights.check`.

    Raises:
        OutOfRangeError: One is too large.
        SaturatedError: Too many int8 codes are at the ends, or zero.
    """
    for name, array in weights.arrays.items():
        if name in _OF_THE_SENSOR:
            continue
        if array.dtype == np.int8:
            scale = weights.arrays[name.removesuffix("codes") + "scale"]
            codes = np.abs(array.astype(np.int16))
            _check_range(name, float((codes * scale).max()))
            _check_spread(name, codes)
        else:
            _check_range(name, float(np.abs(array).max()))


def _check_range(name: str, largest: float) -> None:
    if largest > LARGEST_VALUE:
        raise OutOfRangeError(
            f"array {name!r} reaches {largest:.3g}, a healthy network at most {LARGEST_VALUE:g}"
        )


def _check_spread(name: str, codes: np.ndarray) -> None:
    rows, size = len(codes), codes.size
    # Each row has one: its scale is made so.
    saturated = max(0, int((codes == 127).sum()) - rows) / max(1, size - rows)
    zeros = int((codes == 0).sum()) / size
    if saturated > LARGEST_SATURATED_SHARE or zeros > LARGEST_ZERO_SHARE:
        raise SaturatedError(
            f"of the codes of array {name!r} {saturated:.0%} lie at the ends of int8 and "
            f"{zeros:.0%} at zero, of a healthy network's at most {LARGEST_SATURATED_SHARE:.0%} "
            f"and {LARGEST_ZERO_SHARE:.0%}"
        )
