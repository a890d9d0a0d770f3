"""The passes of a batch norm over batch and pixels: the chains of engines/conv_norm.py.

Two passes forward and three backward, and between them what is one number a channel, or one a
channel and sample. That part is in functions of its own, since a kernel may take a pass's place
(engines/cuda_chains.py) and shall not have arithmetic of its own for the rest.

All that is one number a channel (f, t, A, B, C, reciprocals of scales) is `stored` before a pass
uses it: inside the loop over pixels it would be computed again for every pixel. And sums and
largest values are taken over the pixels of each sample first. A sample lies in the cache while its
channels are gone through, sixteen at a time, whereas the whole batch does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.feature import Feature, through_activation
from engines.fusion import stored
from engines.int8 import QTensor
from engines.precision import Accumulated, Precision
from engines.rounding import Noise, draws
from models.layers import BATCH_NORM_EPSILON

# A channel whose gamma is smaller says nothing about x_hat any more.
_SMALLEST_GAMMA = 1e-3


class Norm(NamedTuple):
    """What a batch norm makes of a batch's moments.

    Args:
        factor: Steps of the output's scale that one of the sums is worth, `[O]`.
        shift: What is added to them, `[O]`.
        scale: Of the output, `[]`.
        inverse: 1 / sqrt(var + eps), `[O]`.
        mean: Of u, `[O]`.
        var: Of u, biased, `[O]`.
    """

    factor: Tensor
    shift: Tensor
    scale: Tensor
    inverse: Tensor
    mean: Tensor
    var: Tensor


def norm_of(
    precision: Precision,
    moments: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: Tensor,
    gamma: Tensor,
    beta: Tensor,
) -> Norm:
    """All that is one number a channel.

    Args:
        precision: Makes the output's scale.
        moments: Mean, mean square, least and largest of the integer sums, float32 `[O]` each.
        scale: Of the sums, `[O]`.
        gamma: `[O]`.
        beta: `[O]`.
    """
    mean, square, low, high = moments
    var = (square - mean.square()).clamp_min(0.0) * scale.square()
    inverse = (var + BATCH_NORM_EPSILON).rsqrt()
    factor = gamma * inverse * scale  # f
    shift = beta - factor * mean  # t
    absmax = torch.maximum((factor * low + shift).abs(), (factor * high + shift).abs()).amax()
    output_scale = precision.scale(absmax)
    per_code = output_scale.reciprocal()
    return Norm(
        stored(factor * per_code),
        stored(shift * per_code),
        output_scale,
        inverse,
        mean * scale,
        var,
    )


def normalize(
    precision: Precision, sums: Accumulated, gamma: Tensor, beta: Tensor, activation: str
) -> tuple[Feature, Tensor, Tensor, Tensor]:
    """z; per channel 1 / sqrt(var + eps), and the mean and (biased) variance of u."""
    c = sums.values.to(torch.float32)
    mean = c.mean(dim=(1, 2)).mean(dim=0)
    square = c.square().mean(dim=(1, 2)).mean(dim=0)
    # Of the integers: their least and largest are found in half the time that floats take.
    low, high = (
        found.to(torch.float32)
        for found in (
            sums.values.amin(dim=(1, 2)).amin(dim=0),
            sums.values.amax(dim=(1, 2)).amax(dim=0),
        )
    )
    norm = norm_of(precision, (mean, square, low, high), sums.scale, gamma, beta)
    codes = precision.round(c * norm.factor + norm.shift)
    return Feature(codes, norm.scale, activation), norm.inverse, norm.mean, norm.var


class ErrorSlopes(NamedTuple):
    """From the error at a norm's output, in units of its share, to the one at its input, du.

    Args:
        slope: A times the share, `[B or 1, O]`.
        offset: B, `[O]`.
        tilt: C, `[O]`.
        dgamma: `[O]`.
        dbeta: `[O]`.
    """

    slope: Tensor
    offset: Tensor
    tilt: Tensor
    dgamma: Tensor
    dbeta: Tensor


def error_slopes(
    sums: tuple[Tensor, Tensor],
    share: Tensor,
    output: Feature,
    norm: tuple[Tensor, Tensor, Tensor],
) -> ErrorSlopes:
    """All that is one number a channel, or one a channel and sample.

    Args:
        sums: Over each sample's pixels, of dz and of dz times the code, `[B, O]` each.
        share: What one of them is worth, `[B or 1, 1]`.
        output: z, kept.
        norm: gamma, beta and 1 / sqrt(var + eps).
    """
    gamma, beta, inverse = norm
    q, (dz, dz_q) = output.codes, sums
    per_gamma = _reciprocal(gamma)
    m, k = output.scale * per_gamma, -beta * per_gamma
    dbeta = (dz * share).sum(dim=0)
    dgamma = m * (dz_q * share).sum(dim=0) + k * dbeta
    per_element = -1.0 / (q.numel() // q.shape[-1])
    slope = gamma * inverse  # A
    offset = slope * (dbeta + k * dgamma) * per_element  # B
    tilt = slope * m * dgamma * per_element  # C
    return ErrorSlopes(stored(slope * share), stored(offset), stored(tilt), dgamma, dbeta)


def channel_scale(precision: Precision, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Of du per channel, which reaches so far in each sample: `[O]`, and its reciprocal."""
    scale = precision.scale(reach.amax(dim=0))
    return scale, stored(scale.reciprocal())


def sample_scale(
    precision: Precision, reach: Tensor, weight_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Of du times the weights' scales per sample: `[B, 1, 1, 1]`; steps of it, `[B, 1, 1, O]`."""
    scale = precision.scale((reach * weight_scale).amax(dim=1)[:, None, None, None])
    return scale, stored(weight_scale / scale)


def errors(
    precision: Precision,
    later: Accumulated,
    output: Feature,
    norm: tuple[Tensor, Tensor, Tensor],
    weight_scale: Tensor,
    randomness: Noise,
    update: bool,
    propagate: bool,
) -> tuple[QTensor | None, QTensor | None, Tensor, Tensor]:
    """du, rounded once for each product that takes it; dgamma and dbeta.

    Args:
        precision: Rounds.
        later: At the activity.
        output: z, kept.
        norm: gamma, beta and 1 / sqrt(var + eps).
        weight_scale: `[O]`.
        randomness: A word for every element.
        update: Round per channel.
        propagate: Round per sample.
    """
    q, share = output.codes, later.scale.reshape(-1, 1)  # [B or 1, 1]
    # In units of `share`, which is one number a sample.
    dz = through_activation(later.values.to(torch.float32), q, output.scale, output.activation)
    if output.activation == "silu":
        dz = stored(dz)
    sums = dz.sum(dim=(1, 2)), (dz * q).sum(dim=(1, 2))
    slopes = error_slopes(sums, share, output, norm)
    du = slopes.slope[:, None, None] * dz + slopes.offset + slopes.tilt * q
    reach = du.abs().amax(dim=(1, 2))  # [B, O]
    u1, u2 = draws(randomness.words().view(q.shape))
    by_channel = by_sample = None
    if update:
        scale, steps = channel_scale(precision, reach)
        by_channel = QTensor(precision.round(du * steps, u1), scale)
    if propagate:
        scale, steps = sample_scale(precision, reach, weight_scale)
        by_sample = QTensor(precision.round(du * steps, u2), scale)
    return by_channel, by_sample, slopes.dgamma, slopes.dbeta


def _reciprocal(gamma: Tensor) -> Tensor:
    kept = gamma.abs() >= _SMALLEST_GAMMA
    return torch.where(kept, 1.0 / torch.where(kept, gamma, 1.0), 0.0)
