"""The published and the home-made ways to round a gradient to INT8.

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
    Rounding,
    absmax,
    direction_error,
    draws_for,
)
from engines.int8 import QTensor, quantize, scale_of
from engines.rounding import Noise

_ALL = (0, 1, 2)
_ROWS = (0, 1)
# Steps from one search for a clip or break-point to the next.
SEARCH_PERIOD = 100
# A in DAI8's average of maxima; k is 1.
_NEW_MAXIMUM = 0.8


class Nearest(GradientQuantizer):
    """The naive baseline: one absmax scale for the tensor, rounded to nearest.

    `s = max|g| / 127`, `q = round(g / s)`. Ours: FF-INT8 (arXiv 2506.22771v1) does not say how the
    BP-INT8 of its Table I was set up.

    Args:
        rounding: How its chain runs.
    """

    per_channel_weights = False

    def __init__(self, rounding: Rounding) -> None:
        self._round = rounding.fuse(_nearest)

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        return _shared((self._round(g),), weight_scale, want_input)


class Strong(GradientQuantizer):
    """The best rounding we know: what Forward-Forward itself uses here.

    For gW, per output channel o: clip `c_o <- 0.2 c_o + 0.8 max|g_o|` (the maximum itself at the
    first step), `s_o = c_o / 127`. For gX: `g s_W`, one absmax scale a group (and a channel, where
    channels are not summed over). Both stochastic.

    Args:
        rounding: Noise, and how the chains run.
    """

    per_channel_weights = True

    def __init__(self, rounding: Rounding) -> None:
        self._noise = rounding.noise
        self._round = rounding.fuse(_strong)
        self._clip: Tensor | None = None

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        self._clip, weight_part, input_part = self._round(
            g, *_moving(self._clip, g), weight_scale, self._noise(g), want_input, sums_channels
        )
        return _codes(weight_part, input_part)


class Ui8(GradientQuantizer):
    """UI8, Zhu et al., CVPR 2020 (arXiv 1912.12607; formulas at second hand): one searched clip.

    Every 100 steps the clip c becomes that of {1.0, 0.9, ..., 0.1} max|g| with the least
    `d_c = 1 - cos(g, g_hat)` (direction-sensitive clipping); the layer then learns at
    `lr max(exp(-20 d_c), 0.1)` (deviation-counteractive rate). `s = c / 127`, stochastic. For gX
    the clipped gradient is multiplied by s_W first and has the scale `c max(s_W) / 127`.

    The original finds c by gradient descent on d_c; the grid stands in for it.

    Args:
        rounding: Noise, and how the chains run.
    """

    per_channel_weights = True
    _SHARES = tuple(tenths / 10 for tenths in range(10, 0, -1))
    _ALPHA = 20.0
    _BETA = 0.1

    def __init__(self, rounding: Rounding) -> None:
        self._noise = rounding.noise
        self._round = rounding.fuse(_clipped)
        self._error = rounding.fuse(_clipping_error)
        self._search = _PeriodicSearch(self._SHARES)

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        clip, error = self._search.value(g, lambda c: self._error(g, c, self._noise(g)))
        self.learning_rate_factor = max(math.exp(-self._ALPHA * error), self._BETA)
        return _codes(*self._round(g, clip, weight_scale, self._noise(g), want_input))


class Dai8(GradientQuantizer):
    """DAI8, Zhao et al., AAAI 2021 (arXiv 2102.04782; formulas at second hand).

    For gW, per output channel o with standard deviation sigma_o: where `P(|g_o| > sigma_o) > 0.3`
    the channel counts as Gaussian and its clip is `max|g_o|`; elsewhere (an "inverted T")
    `c_o <- (1 - k A) c_o + A max|g_o|`, k = 1, A = 0.8. For gX: one absmax scale for the tensor.
    Both stochastic.

    Args:
        rounding: Noise, and how the chains run.
    """

    per_channel_weights = False

    def __init__(self, rounding: Rounding) -> None:
        self._noise = rounding.noise
        self._round = rounding.fuse(_by_distribution)
        self._clip: Tensor | None = None

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        self._clip, weight_part, input_part = self._round(
            g, *_moving(self._clip, g), weight_scale, self._noise(g), want_input
        )
        return _codes(weight_part, input_part)


class Gdai8Like(GradientQuantizer):
    """In the manner of GDAI8 (Wang & Kang 2023), whose formulas were not found: **ours**.

    `g = g_1 + g_2`, parted at a break-point b: `|g| <= b` in steps of `b / 127`, the rest in steps
    of `max|g| / 127`; each part has a product of its own, added in float32. Every 100 steps b
    becomes that of {1/2, 1/4, ..., 1/64} max|g| with the least `d_c = 1 - cos(g, g_hat)`.
    Stochastic; the weight has one scale, so both products share the codes.

    Args:
        rounding: Noise, and how the chains run.
    """

    per_channel_weights = False
    _SHARES = tuple(0.5**halvings for halvings in range(1, 7))

    def __init__(self, rounding: Rounding) -> None:
        self._noise = rounding.noise
        self._round = rounding.fuse(_parted)
        self._error = rounding.fuse(_parting_error)
        self._search = _PeriodicSearch(self._SHARES)

    def quantize(
        self, g: Tensor, weight_scale: Tensor, *, want_input: bool, sums_channels: bool
    ) -> GradientCodes:
        """See `GradientQuantizer.quantize`."""
        break_point, _ = self._search.value(g, lambda b: self._error(g, b, self._noise(g)))
        return _shared(self._round(g, break_point, self._noise(g)), weight_scale, want_input)


class _PeriodicSearch:
    """The share of max|g| that turns the gradient least, looked for every 100 steps.

    A gradient of zeros says nothing: it leaves the value as it was and the search due.

    Args:
        shares: To choose from; the first of equals is taken.
    """

    def __init__(self, shares: tuple[float, ...]) -> None:
        self._shares = shares
        self._due_in = 0
        self._value = torch.zeros(())
        self._error = 0.0

    def value(self, g: Tensor, error: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
        """The value in use at this step, float32 `[]`, and d_c when it was found.

        Args:
            g: float32 gradient.
            error: `d_c` under a value, float32 `[]`.
        """
        if self._due_in == 0:
            highest = absmax(g, _ALL).view(())
            if highest > 0:
                found = [(error(share * highest).item(), share) for share in self._shares]
                self._error, best = min(found, key=lambda pair: pair[0])
                self._value = best * highest
                self._due_in = SEARCH_PERIOD
        self._due_in = max(0, self._due_in - 1)
        return self._value, self._error


# --- the chains: pure functions of tensors and constants ----------------------------------------


def _nearest(g: Tensor) -> QTensor:
    return quantize(g, scale_of(absmax(g, _ALL)))


def _strong(
    g: Tensor,
    clip: Tensor,
    newness: float,
    weight_scale: Tensor,
    noise: Noise,
    want_input: bool,
    sums_channels: bool,
) -> tuple[Tensor, QTensor, QTensor | None]:
    first, second = draws_for(g, noise)
    clip = torch.lerp(clip, absmax(g, _ROWS), newness)
    weight_part = quantize(g, scale_of(clip), first)
    if not want_input:
        return clip, weight_part, None
    folded = g * weight_scale
    scale = scale_of(absmax(folded, (1, 2) if sums_channels else (1,)))
    return clip, weight_part, quantize(folded, scale, second)


def _clipped(
    g: Tensor, clip: Tensor, weight_scale: Tensor, noise: Noise, want_input: bool
) -> tuple[QTensor, QTensor | None]:
    first, second = draws_for(g, noise)
    weight_part = quantize(g, scale_of(clip), first)
    if not want_input:
        return weight_part, None
    folded = torch.maximum(torch.minimum(g, clip), -clip) * weight_scale
    return weight_part, quantize(folded, scale_of(clip * weight_scale.max()), second)


def _clipping_error(g: Tensor, clip: Tensor, noise: Noise) -> Tensor:
    return direction_error(g, quantize(g, scale_of(clip), draws_for(g, noise)[0]).dequantize())


def _by_distribution(
    g: Tensor, clip: Tensor, newness: float, weight_scale: Tensor, noise: Noise, want_input: bool
) -> tuple[Tensor, QTensor, QTensor | None]:
    first, second = draws_for(g, noise)
    sigma = g.var(_ROWS, correction=0, keepdim=True).sqrt()
    beyond = (g.abs() > sigma).to(torch.float32).mean(_ROWS, keepdim=True)
    highest = absmax(g, _ROWS)
    clip = torch.where(beyond > 0.3, highest, torch.lerp(clip, highest, newness))
    weight_part = quantize(g, scale_of(clip), first)
    if not want_input:
        return clip, weight_part, None
    input_part = quantize(g, scale_of(highest.max()), second)
    return clip, weight_part, QTensor(input_part.codes, input_part.scale * weight_scale)


def _parted(g: Tensor, break_point: Tensor, noise: Noise) -> tuple[QTensor, QTensor]:
    # An element is zero in one of the parts and rounds to zero there, so one draw serves both.
    draw, _ = draws_for(g, noise)
    low = torch.where(g.abs() <= break_point, g, 0.0)
    return (
        quantize(low, scale_of(break_point), draw),
        quantize(g - low, scale_of(absmax(g, _ALL)), draw),
    )


def _parting_error(g: Tensor, break_point: Tensor, noise: Noise) -> Tensor:
    low, high = _parted(g, break_point, noise)
    return direction_error(g, low.dequantize() + high.dequantize())


def _moving(clip: Tensor | None, g: Tensor) -> tuple[Tensor, float]:
    """A kept clip and how much the new maximum counts against it: alone at the first step."""
    return (g.new_zeros(1, 1, g.shape[2]), 1.0) if clip is None else (clip, _NEW_MAXIMUM)


def _codes(weight_part: QTensor, input_part: QTensor | None) -> GradientCodes:
    return GradientCodes((weight_part,), () if input_part is None else (input_part,))


def _shared(parts: tuple[QTensor, ...], weight_scale: Tensor, want_input: bool) -> GradientCodes:
    """The same codes for both products, where the weight has one scale."""
    scaled = tuple(QTensor(part.codes, part.scale * weight_scale) for part in parts)
    return GradientCodes(parts, scaled if want_input else ())
