"""What a policy is: the float gradient of a layer's output in, its INT8 codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from engines.int8 import CODE_MAX, QTensor, quantize
from engines.rounding import NoiseKey, uniform


class GradientCodes(NamedTuple):
    """One gradient, quantized for the two products that it enters.

    Each is a sum of parts (one, but for `Gdai8Like`), and each part costs a product.

    Args:
        for_weight: int8 `[G, R, O]`; the scale broadcasts against it and does not vary along the
            summed axes G and R.
        for_input: int8 `[G, R, O]` of the gradient times the weight scale; its own scale does not
            vary along what one input's gradient is summed over. Empty where it is not wanted.
    """

    for_weight: tuple[QTensor, ...]
    for_input: tuple[QTensor, ...]


class GradientQuantizer(ABC):
    """How one layer rounds its output gradient; keeps what it remembers between steps."""

    # One weight scale per output channel, or one for all.
    per_channel_weights: bool
    # What the layer's learning rate is multiplied by; only UI8 changes it.
    learning_rate_factor = 1.0

    @abstractmethod
    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """Codes of one step's gradient; called once a step.

        Args:
            g: float32 `[G, R, O]`: output channels last; the R rows of a group reach the same
                inputs, so that a group may have a scale of its own in the input gradient.
            weight_scale: float32 `[O]`, or `[]` where all output channels share it.
            want_input: Whether the input gradient will be computed.
            sums_channels: Whether an input's gradient sums over O (all but depthwise).
        """


class Noise:
    """Uniform draws in [0, 1) for stochastic rounding; the same seed gives the same sequence.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn = 0

    def draw(self, shape: torch.Size) -> Tensor:
        """The next tensor of draws, float32 of `shape`."""
        self._drawn += 1
        return uniform(shape, NoiseKey(self._seed, 0, self._drawn))

    def round(self, x: Tensor, scale: Tensor) -> QTensor:
        """`x` in steps of `scale`, rounded stochastically; beyond 127 of them it is clipped."""
        return quantize(x, scale, self.draw(x.shape))


def scale_for(clip: Tensor) -> Tensor:
    """The scale whose code 127 is `clip`, float32 of its shape; 1 where `clip` is zero."""
    scale = clip / CODE_MAX
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)


def absmax(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Largest magnitude along `dims`, which stay with size 1."""
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


def direction_error(g: Tensor, rounded: Tensor) -> float:
    """`d_c = 1 - cos(g, g_hat)`: how far rounding turned the gradient; 1 where `g_hat` is zero.

    Source: UI8, Zhu et al. 2020 (arXiv 1912.12607), direction-sensitive gradient clipping.

    Args:
        g: float32, not all zero.
        rounded: `g_hat`, of the same shape.
    """
    norms = (g.square().sum() * rounded.square().sum()).sqrt().item()
    return 1.0 if norms == 0 else 1.0 - (g * rounded).sum().item() / norms
