"""Input standardisation: part of the weights, so that sensors may speak in any unit."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.base import INPUT_CLIP

# A deviation this small beside its mean is what rounding leaves of a constant feature.
_CONSTANT = 1e-6
# This share of the values on each side counts as its innermost one: a sensor's glitch of 1e10 in
# the first block must not flatten everything that follows.
_OUTLIERS = 0.01
_FITTED_SAMPLES = 4096


def fit_standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    """Winsorised mean and standard deviation per feature, per channel where there are further axes.

    Args:
        x: float32 `[batch, features]`, `[batch, channels, length]` or
            `[batch, channels, height, width]`; of more than 4,096 samples, every so many-th.

    Returns:
        Two float32 `[features of a sample]`, flat; the deviation of what never varies is 1.
    """
    one = x[:1]
    x = x[:: -(-len(x) // _FITTED_SAMPLES)]
    values = x.transpose(0, 1).flatten(start_dim=1).double()  # [features or channels, values]
    ordered = values.sort(dim=1).values
    cut = int(_OUTLIERS * values.shape[1])
    values = ordered.clamp(ordered[:, cut : cut + 1], ordered[:, -1 - cut : values.shape[1] - cut])
    mean = values.mean(dim=1).float()
    std = (values - values.mean(dim=1, keepdim=True)).square_().mean(dim=1).sqrt_().float()
    std = torch.where(std > _CONSTANT * mean.abs(), std, 1.0)
    shape = (1, -1, *[1] * (one.ndim - 2))
    spread = [t.view(shape).expand_as(one).flatten().clone() for t in (mean, std)]
    return spread[0], spread[1]


def standardize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`(x - mean) / std` clipped to 4 standard deviations.

    The clip keeps one outlier, or a feature that is almost always constant, from stretching the one
    INT8 scale that all features share.

    Args:
        x: float32 `[batch, features]`.
        mean: float32 `[features]`.
        std: float32 `[features]`, positive.
    """
    return ((x - mean) / std).clamp(-INPUT_CLIP, INPUT_CLIP)
