"""A batch of samples as engines take it; checked alike by all of them, and without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models import ModelSpec


def check_input(x: NDArray[np.float32], spec: ModelSpec) -> None:
    """Refuse a batch that is not `[batch, *input_shape]`.

    Raises:
        ValueError: The shape is not the model's, or a value is not finite.
    """
    if x.shape[1:] != spec.input_shape:
        raise ValueError(
            f"input has shape {[*x.shape[1:]]} per sample, the model needs {[*spec.input_shape]}"
        )
    if not np.isfinite(x).all():
        raise ValueError("input holds a value that is not finite")
