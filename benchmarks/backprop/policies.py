"""The published and the home-made ways to round a gradient to INT8 (algorithm.md section 5).

`g` is `[G, R, O]` throughout, see `GradientQuantizer.quantize`; max|g| is its absmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.backprop.gradient import (
    GradientCodes,
    GradientQuantizer,
    Noise,
    absmax,
    direction_error,
    scale_for,
)
from engines.int8 import QTensor, quantize

_ALL = (0, 1, 2)
_ROWS = (0, 1)
# Steps from one search for a clip or break-point to the next.
SEARCH_PERIOD = 100


class Nearest(GradientQuantizer):
    """The naive baseline: one absmax scale for the tensor, rounded to nearest.

    `s = max|g| / 127`, `q = round(g / s)`. Ours: FF-INT8 (arXiv 2506.22771v1) does not say how the
    BP-INT8 of its Table I was set up.
    """

    per_channel_weights = False

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        part = quantize(g, scale_for(absmax(g, _ALL)))
        return _shared((part,), weight_scale, want_input)


class Strong(GradientQuantizer):
    """The best rounding we know: what Forward-Forward itself uses here (algorithm.md section 4).

    For gW, per output channel o: clip `c_o <- 0.2 c_o + 0.8 max|g_o|` (the maximum itself at the
    first step), `s_o = c_o / 127`. For gX: `g s_W`, one absmax scale a group (and a channel, where
    channels are not summed over). Both stochastic.

    Args:
        noise: Draws for the rounding.
    """

    per_channel_weights = True

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._clip = _AveragedMaximum()

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        clip = self._clip.average(absmax(g, _ROWS))
        self._clip.keep(clip)
        for_weight = self._noise.round(g, scale_for(clip))
        if not want_input:
            return GradientCodes((for_weight,), ())
        folded = g * weight_scale
        shared = (1, 2) if sums_channels else (1,)
        for_input = self._noise.round(folded, scale_for(absmax(folded, shared)))
        return GradientCodes((for_weight,), (for_input,))


class Ui8(GradientQuantizer):
    """UI8, Zhu et al., CVPR 2020 (arXiv 1912.12607; formulas at second hand): one searched clip.

    Every 100 steps the clip c becomes that of {1.0, 0.9, ..., 0.1} max|g| with the least
    `d_c = 1 - cos(g, g_hat)` (direction-sensitive clipping); the layer then learns at
    `lr max(exp(-20 d_c), 0.1)` (deviation-counteractive rate). `s = c / 127`, stochastic. For gX
    the clipped gradient is multiplied by s_W first and has the scale `c max(s_W) / 127`.

    The original finds c by gradient descent on d_c; the grid stands in for it.

    Args:
        noise: Draws for the rounding.
    """

    per_channel_weights = True
    _SHARES = tuple(tenths / 10 for tenths in range(10, 0, -1))
    _ALPHA = 20.0
    _BETA = 0.1

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._search = _PeriodicSearch()

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        clip, error = self._search.value(
            g, self._SHARES, lambda c: self._noise.round(g, scale_for(c)).dequantize()
        )
        self.learning_rate_factor = max(math.exp(-self._ALPHA * error), self._BETA)
        for_weight = self._noise.round(g, scale_for(clip))
        if not want_input:
            return GradientCodes((for_weight,), ())
        folded = g.clamp(-clip, clip).mul_(weight_scale)
        for_input = self._noise.round(folded, scale_for(clip * weight_scale.max()))
        return GradientCodes((for_weight,), (for_input,))


class Dai8(GradientQuantizer):
    """DAI8, Zhao et al., AAAI 2021 (arXiv 2102.04782; formulas at second hand).

    For gW, per output channel o with standard deviation sigma_o: where `P(|g_o| > sigma_o) > 0.3`
    the channel counts as Gaussian and its clip is `max|g_o|`; elsewhere (an "inverted T")
    `c_o <- (1 - k A) c_o + A max|g_o|`, k = 1, A = 0.8. For gX: one absmax scale for the tensor.
    Both stochastic.

    Args:
        noise: Draws for the rounding.
    """

    per_channel_weights = False
    _GAUSSIAN_SHARE = 0.3

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._clip = _AveragedMaximum()

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        sigma = g.std(_ROWS, correction=0, keepdim=True)
        beyond = (g.abs() > sigma).mean(_ROWS, keepdim=True, dtype=torch.float32)
        highest = absmax(g, _ROWS)
        averaged = self._clip.average(highest)
        clip = torch.where(beyond > self._GAUSSIAN_SHARE, highest, averaged)
        self._clip.keep(clip)
        for_weight = self._noise.round(g, scale_for(clip))
        if not want_input:
            return GradientCodes((for_weight,), ())
        for_input = self._noise.round(g, scale_for(highest.max()))
        return GradientCodes((for_weight,), (_times(for_input, weight_scale),))


class Gdai8Like(GradientQuantizer):
    """In the manner of GDAI8 (Wang & Kang 2023), whose formulas were not found: **ours**.

    `g = g_1 + g_2`, parted at a break-point b: `|g| <= b` in steps of `b / 127`, the rest in steps
    of `max|g| / 127`; each part has a product of its own, added in float32. Every 100 steps b
    becomes that of {1/2, 1/4, ..., 1/64} max|g| with the least `d_c = 1 - cos(g, g_hat)`.
    Stochastic; the weight has one scale, so both products share the codes.

    Args:
        noise: Draws for the rounding.
    """

    per_channel_weights = False
    _SHARES = tuple(0.5**halvings for halvings in range(1, 7))

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._search = _PeriodicSearch()

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        highest = absmax(g, _ALL)

        def parts(break_point: Tensor) -> tuple[QTensor, QTensor]:
            low = torch.where(g.abs() <= break_point, g, 0.0)
            high = g - low
            return (
                self._noise.round(low, scale_for(break_point)),
                self._noise.round(high, scale_for(highest)),
            )

        def rounded(break_point: Tensor) -> Tensor:
            low, high = parts(break_point)
            return low.dequantize() + high.dequantize()

        break_point, _ = self._search.value(g, self._SHARES, rounded)
        return _shared(parts(break_point), weight_scale, want_input)


class _AveragedMaximum:
    """A clip that follows the maximum: `c <- (1 - k A) c + A max`, k = 1, A = 0.8."""

    _WEIGHT = 0.8

    def __init__(self) -> None:
        self._clip: Tensor | None = None

    def average(self, highest: Tensor) -> Tensor:
        """The kept clip moved towards `highest`; `highest` itself at the first step."""
        if self._clip is None:
            return highest
        return torch.lerp(self._clip, highest, self._WEIGHT)

    def keep(self, clip: Tensor) -> None:
        """Use `clip` as the one to move from at the next step."""
        self._clip = clip


class _PeriodicSearch:
    """The share of max|g| that turns the gradient least, looked for every 100 steps.

    A gradient of zeros says nothing: it leaves the value as it was and the search due.
    """

    def __init__(self) -> None:
        self._due_in = 0
        self._value = torch.zeros(())
        self._error = 0.0

    def value(
        self, g: Tensor, shares: tuple[float, ...], rounded: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, float]:
        """The value in use at this step, float32 `[]`, and d_c when it was found.

        Args:
            g: float32 gradient.
            shares: Of max|g|, to choose from; the first of equals is taken.
            rounded: What the gradient becomes under a value.
        """
        if self._due_in == 0:
            highest = g.abs().max()
            if highest > 0:
                found = [(direction_error(g, rounded(s * highest)), s) for s in shares]
                self._error, share = min(found, key=lambda pair: pair[0])
                self._value = share * highest
                self._due_in = SEARCH_PERIOD
        self._due_in = max(0, self._due_in - 1)
        return self._value, self._error


def _times(part: QTensor, weight_scale: Tensor) -> QTensor:
    """The same codes for the input gradient, where the weight has one scale."""
    return QTensor(part.codes, part.scale * weight_scale)


def _shared(parts: tuple[QTensor, ...], weight_scale: Tensor, want_input: bool) -> GradientCodes:
    """The same codes for both products, where the weight has one scale."""
    return GradientCodes(parts, tuple(_times(p, weight_scale) for p in parts if want_input))
