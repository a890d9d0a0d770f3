"""What a policy is: the float gradient of a layer's output in, its INT8 codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from engines.fusion import Fusion
from engines.int8 import QTensor
from engines.rounding import Noise, NoiseKey, draws, noise

P = ParamSpec("P")
R = TypeVar("R")


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


class Rounding:
    """Where the layers of a run take their noise from, and how their chains run.

    Args:
        seed: Of the run; the same seed gives the same sequence of noise.
        fusion: Compiled or eager: the same as Forward-Forward has, or times tell nothing.
    """

    def __init__(self, seed: int, fusion: Fusion) -> None:
        self._seed = seed
        self.fusion = fusion
        self._drawn = 0

    def noise(self, g: Tensor) -> Noise:
        """Noise for a gradient `[G, R, O]`, another one at each call."""
        self._drawn += 1
        return noise(g.shape[0] * g.shape[1], g.shape[2], NoiseKey(self._seed, 0, self._drawn))

    def fuse(self, chain: Callable[P, R]) -> Callable[P, R]:
        """A pure function of tensors and constants, for one layer's use."""
        return self.fusion.fuse(chain)


def draws_for(g: Tensor, source: Noise) -> tuple[Tensor, Tensor]:
    """Two draws for each element of a gradient, int32 of its shape."""
    first, second = draws(source.words())
    return first.view(g.shape), second.view(g.shape)


def absmax(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Largest magnitude along `dims`, which stay with size 1."""
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


def direction_error(g: Tensor, rounded: Tensor) -> Tensor:
    """`d_c = 1 - cos(g, g_hat)`: how far rounding turned the gradient; 1 where `g_hat` is zero.

    Source: UI8, Zhu et al. 2020 (arXiv 1912.12607), direction-sensitive gradient clipping.

    Args:
        g: float32.
        rounded: `g_hat`, of the same shape.

    Returns:
        float32 `[]`.
    """
    norms = g.square().sum().sqrt() * rounded.square().sum().sqrt()
    return torch.where(norms > 0, 1.0 - (g * rounded).sum() / norms, 1.0)
