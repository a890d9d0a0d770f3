"""Input standardisation: part of the weights, so that sensors may speak in any unit."""

from __future__ import annotations

import torch
from torch import Tensor

INPUT_CLIP = 4.0
# A deviation this small beside its mean is what rounding leaves of a constant feature.
_CONSTANT = 1e-6


def fit_standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per feature, or per channel where a sample has further axes.

    Args:
        x: float32 `[batch, features]`, `[batch, channels, length]` or
            `[batch, channels, height, width]`.

    Returns:
        Two float32 `[features of a sample]`, flat; the deviation of what never varies is 1.
    """
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(dim=axes, keepdim=True, dtype=torch.float64).float()
    std = (x - mean).square_().mean(dim=axes, keepdim=True, dtype=torch.float64).sqrt().float()
    std = torch.where(std > _CONSTANT * mean.abs(), std, 1.0)
    one = x[:1]
    return mean.expand_as(one).flatten().clone(), std.expand_as(one).flatten().clone()


def standardize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`(x - mean) / std` clipped to 4 standard deviations.

    The clip keeps one outlier, or a feature that is almost always constant, from stretching the one
    INT8 scale that all features share.

    Args:
        x: float32 `[batch, features]`.
        mean: float32 `[features]`.
        std: float32 `[features]`, positive.
    """
    return ((x - mean) / std).clamp_(-INPUT_CLIP, INPUT_CLIP)
