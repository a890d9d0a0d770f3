"""Whether an engine computes what the learner computed: the check before anything may serve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.base import PredictEngine, Weights

# Goodness is a mean of squares near 1; the learner's and the server's engine may sum in another
# order (float32, 1e-3 relative) but must not disagree on anything that could change an answer.
CANARY_TOLERANCE = 1e-3


def canary_error(
    weights: Weights, goodness_of: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> float:
    """Largest difference to the learner's goodness of the canary batch.

    Args:
        weights: With the canary.
        goodness_of: Float32 `[batch, *input_shape]` to float32 `[batch, max_classes]`.

    Returns:
        In parts of the largest goodness, or of 1 where that is less; not a number if an answer is
        none.
    """
    batch = weights.arrays["canary.input"].astype(np.float32)
    expected = weights.arrays["canary.goodness"].astype(np.float32)
    got = goodness_of(batch.reshape(len(batch), *weights.spec.input_shape))
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(got - expected).max(initial=0.0)) / scale


def canary_agrees(weights: Weights, engine: PredictEngine) -> bool:
    """Whether the difference is within the tolerance."""
    return canary_error(weights, lambda x: engine.predict(x).goodness) <= CANARY_TOLERANCE
