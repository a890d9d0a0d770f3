"""Kernels for images, NHWC: a convolution's operand, a depthwise product, a batch norm's passes.

As in engines/cuda_kernels.py: integers, and floats that decide integers, have the bits of the eager
chain; sums over pixels have an order of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.cuda_kernels import noise_arguments
from engines.cuda_launch import Launcher
from engines.im2col import Windows, padded_to_multiple
from engines.rounding import Noise

_INT8, _INT32, _FLOAT32 = torch.int8, torch.int32, torch.float32
# Activations that kernels know, as engines/kernels/norm.cu numbers them.
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}
_WORD_BYTES = 4


def im2col(
    on: Launcher,
    x: Tensor,
    windows: Windows,
    lines: slice,
    activation: str = "none",
    cap: Tensor | None = None,
) -> Tensor:
    """The column matrix of some lines of windows, with the activation applied on the way.

    Args:
        on: Starts kernels.
        x: int8 `[B, H, W, C]`.
        windows: Which windows; see `engines.im2col`.
        lines: Which lines of them.
        activation: One of `ACTIVATIONS`.
        cap: Of relu6, the code of 6: int8 `[]`.

    Returns:
        int8 `[B * lines * across, K]`, K padded with zero codes to a multiple of 8.
    """
    images, height, width, channels = on.checked("x", x, _INT8, -1, -1, -1, -1).shape
    if (cap is None) == (ACTIVATIONS[activation] == ACTIVATIONS["relu6"]):
        raise ValueError(f"activation {activation!r} and a cap of {cap}; relu6 alone wants one")
    if cap is not None:
        on.checked("cap", cap, _INT8)
    (down, across_taps), across = windows.taps, windows.grid[1]
    inner = padded_to_multiple(down * across_taps * channels)
    count = lines.stop - lines.start
    columns = on.empty(_INT8, images * count * across, inner)
    words = columns.numel() // _WORD_BYTES
    relu = int(activation != "none")
    image = height, width, channels
    taps = down, across_taps, windows.stride, *windows.origin
    sizes = words, inner, *image, *taps, lines.start, count, across
    on.elements("im2col", words, x, columns, cap, relu, *sizes)
    return columns


def depthwise(on: Launcher, seen: Tensor, taps: Tensor, kernel: int) -> Tensor:
    """Sums of a depthwise convolution.

    Args:
        on: Starts kernels.
        seen: What each window sees, int8 `[B, Ho, Wo, C, k, k]`: a view, in which channels lie next
            to one another.
        taps: int32 `[k, k, C]`.
        kernel: k.

    Returns:
        int32 `[B, Ho, Wo, C]`.
    """
    on.checked("windows", seen, _INT8, -1, -1, -1, -1, kernel, kernel, strided=True)
    images, down, across, channels = seen.shape[:4]
    on.checked("taps", taps, _INT32, kernel, kernel, channels)
    image_stride, line_stride, window_stride, channel_stride, *tap_strides = seen.stride()
    if channel_stride != 1:
        raise ValueError(f"channels lie {channel_stride} apart; wanted next to one another")
    sums = on.empty(_INT32, images, down, across, channels)
    sizes = sums.numel(), down, across, channels, kernel
    strides = image_stride, line_stride, window_stride, *tap_strides
    on.elements("depthwise", sums.numel(), seen, taps, sums, *sizes, *strides)
    return sums


class ChannelMoments(NamedTuple):
    """Of each sample and channel, over its pixels: `[B, C]` each.

    Args:
        mean: float32.
        square: Mean of the squares, float32.
        low: int32.
        high: int32.
    """

    mean: Tensor
    square: Tensor
    low: Tensor
    high: Tensor


def channel_moments(on: Launcher, sums: Tensor) -> ChannelMoments:
    """Moments of int32 `[B, H, W, C]`."""
    images, height, width, channels = on.checked("sums", sums, _INT32, -1, -1, -1, -1).shape
    dtypes = _FLOAT32, _FLOAT32, _INT32, _INT32
    moments = ChannelMoments(*(on.empty(dtype, images, channels) for dtype in dtypes))
    on.pixels("channel_moments", sums.shape, sums, *moments, height * width, channels)
    return moments


def affine_codes(on: Launcher, sums: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """int8 codes of `sums * factor + shift`: int32 `[B, H, W, C]`, float32 `[C]` twice."""
    channels = on.checked("sums", sums, _INT32, -1, -1, -1, -1).shape[3]
    on.checked("factor", factor, _FLOAT32, channels)
    on.checked("shift", shift, _FLOAT32, channels)
    codes = on.empty(_INT8, *sums.shape)
    on.elements("affine_codes", sums.numel(), sums, factor, shift, codes, sums.numel(), channels)
    return codes


class NormError(NamedTuple):
    """An error at a batch norm's activity, and what it passes on its way back.

    Args:
        values: float32, or a product's int32 sums, `[B, H, W, C]`.
        codes: Of the norm's output, int8, likewise.
        activation: One of `ACTIVATIONS`.
        six: Of relu6: how many codes its 6 is, float32 `[]`.
    """

    values: Tensor
    codes: Tensor
    activation: str
    six: Tensor | None = None

    def arguments(self, on: Launcher) -> tuple[Tensor | int | None, ...]:
        """As a kernel takes them."""
        integer = self.values.dtype == _INT32
        on.checked("error", self.values, _INT32 if integer else _FLOAT32, -1, -1, -1, -1)
        on.checked("codes", self.codes, _INT8, *self.values.shape)
        if self.six is not None:
            on.checked("six", self.six, _FLOAT32)
        return self.values, int(integer), self.codes, ACTIVATIONS[self.activation], self.six


def norm_error_sums(on: Launcher, error: NormError) -> tuple[Tensor, Tensor]:
    """Over each sample's pixels, sums of the error and of error times code: float32 `[B, C]`."""
    arguments = error.arguments(on)
    images, height, width, channels = error.codes.shape
    sums, products = on.empty(_FLOAT32, images, channels), on.empty(_FLOAT32, images, channels)
    sizes = height * width, channels
    on.pixels("norm_error_sums", error.codes.shape, *arguments, sums, products, *sizes)
    return sums, products


class Slopes(NamedTuple):
    """From an error at a norm's output to one at its input: `slope * error + offset + tilt * code`.

    Args:
        slope: float32 `[B, C]`, or `[1, C]` where samples share it.
        offset: float32 `[C]`.
        tilt: float32 `[C]`.
    """

    slope: Tensor
    offset: Tensor
    tilt: Tensor

    def arguments(self, on: Launcher, error: NormError) -> tuple[Tensor | int, ...]:
        """As a kernel takes them."""
        images, channels = len(error.codes), error.codes.shape[3]
        shared = len(self.slope) == 1
        on.checked("slope", self.slope, _FLOAT32, 1 if shared else images, channels)
        on.checked("offset", self.offset, _FLOAT32, channels)
        on.checked("tilt", self.tilt, _FLOAT32, channels)
        return self.slope, int(not shared), self.offset, self.tilt


def norm_error_reach(on: Launcher, error: NormError, slopes: Slopes) -> Tensor:
    """How far the error at the norm's input reaches over each sample's pixels, `[B, C]`."""
    arguments = *error.arguments(on), *slopes.arguments(on, error)
    images, height, width, channels = error.codes.shape
    reach = on.empty(_FLOAT32, images, channels)
    sizes = height * width, channels
    on.pixels("norm_error_reach", error.codes.shape, *arguments, reach, *sizes)
    return reach


def norm_error_codes(
    on: Launcher,
    error: NormError,
    slopes: Slopes,
    per_channel: Tensor | None,
    per_sample: Tensor | None,
    noise: Noise,
) -> tuple[Tensor | None, Tensor | None]:
    """That error, rounded stochastically in one or two ways.

    Args:
        on: Starts kernels.
        error: At the norm's output.
        slopes: From there to its input.
        per_channel: Steps that 1 is, float32 `[C]`; None: not wanted so.
        per_sample: Likewise, `[B, C]`.
        noise: Of the rounding, `[B * H * W, C]`.

    Returns:
        int8 `[B, H, W, C]` for either that is wanted.
    """
    arguments = *error.arguments(on), *slopes.arguments(on, error)
    images, height, width, channels = shape = error.codes.shape
    by_channel = by_sample = None
    if per_channel is not None:
        on.checked("steps per channel", per_channel, _FLOAT32, channels)
        by_channel = on.empty(_INT8, *shape)
    if per_sample is not None:
        on.checked("steps per sample", per_sample, _FLOAT32, images, channels)
        by_sample = on.empty(_INT8, *shape)
    words = noise_arguments(on, noise, images * height * width, channels)
    count = error.codes.numel()
    out = by_channel, by_sample, count, height * width, channels
    on.elements("norm_error_codes", count, *arguments, per_channel, per_sample, *words, *out)
    return by_channel, by_sample
