"""What travels between layers: int8 codes, their scale, and the activation still to be applied.

A convolution's codes are those of its *pre*-activation. The next product multiplies
`activation(codes)`, an int8 to int8 map applied while its operand is gathered, and the backward
pass still has the sign and size that a ReLU would have destroyed (a batch norm's gradient needs
them). So one byte an element serves the forward product, the weight gradient, the activation's and
the norm's gradient; back-propagation in float32 keeps eight or more.

    none    f(z) = z
    relu    f(z) = max(z, 0)
    relu6   f(z) = min(max(z, 0), 6)                MobileNetV2, arXiv 1801.04381
    silu    f(z) = z / (1 + exp(-z))                arXiv 1702.03118; never larger than |z|, so that
                                                    its codes keep z's scale
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.fusion import stored
from engines.precision import Precision

ACTIVATIONS = ("none", "relu", "relu6", "silu")


class Feature(NamedTuple):
    """Codes of a pre-activation.

    Args:
        codes: int8 `[B, N]` or `[B, H, W, C]` (FP32: float32).
        scale: float32 `[]`.
        activation: One of `ACTIVATIONS`.
    """

    codes: Tensor
    scale: Tensor
    activation: str = "none"

    def operand(self, precision: Precision) -> Tensor:
        """Codes of the activity, under the same scale."""
        return activity_codes(precision, self.codes, self.scale, self.activation)

    def dequantize(self, precision: Precision) -> Tensor:
        """The activity, float32."""
        return self.operand(precision) * self.scale


def activity_codes(precision: Precision, codes: Tensor, scale: Tensor, activation: str) -> Tensor:
    """Codes of the activation's value under the pre-activation's scale.

    Args:
        precision: Rounds where a value is no code.
        codes: Of the pre-activation.
        scale: float32 `[]`.
        activation: One of `ACTIVATIONS`.
    """
    if activation == "none":
        return codes
    if activation == "silu":
        # The value's codes before rounding, since s codes(f) = s codes / (1 + exp(-s codes)).
        return precision.round(codes / (1.0 + torch.exp(codes * stored(-scale))))
    positive = codes.clamp_min(0)
    if activation == "relu":
        return positive
    # Integers are compared with the code of 6: a tenth of the time of a float and back.
    return positive.minimum(stored(precision.quantize(torch.full_like(scale, 6.0), scale)))


def through_activation(error: Tensor, codes: Tensor, scale: Tensor, activation: str) -> Tensor:
    """An error at the activity, carried to the pre-activation.

    Args:
        error: float32.
        codes: Of the pre-activation.
        scale: float32 `[]`.
        activation: One of `ACTIVATIONS`; a ReLU lets nothing through at its corners.
    """
    if activation == "none":
        return error
    q = codes.to(torch.float32)  # whose comparison compilers vectorise
    if activation == "silu":
        z = q * scale
        gate = torch.sigmoid(z)
        return error * (gate * (1.0 + z * (1.0 - gate)))
    if activation == "relu6":
        error = torch.where(q < stored(6.0 / scale), error, 0.0)
    return torch.where(q > 0.0, error, 0.0)


def activation_slope(z: Tensor, activation: str) -> Tensor:
    """The activation's derivative at the pre-activation `z`, float32."""
    return through_activation(torch.ones_like(z), z, z.new_ones(()), activation)
