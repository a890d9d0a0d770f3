"""The three products of a depthwise convolution, in integers: int8 codes in, int32 sums out.

Every channel has a kernel of its own, so there is no matrix to multiply by; each product is a sum
of elementwise products over taps or over pixels. With input codes `A` `[B, H, W, C]`, weight codes
`W` `[C, k*k]`, error codes `E` at the output `[B, Ho, Wo, C]`, and `A_ij` for the pixels that tap
(i, j) of all windows sees, `[B, Ho, Wo, C]`:

    forward          sum over taps of A_ij * W_ij
    weight gradient  sum over batch and pixels of E * A_ij
    input gradient   sum over windows that see the pixel of E * W_ij

For a stride s the input gradient takes pixels s by s. Along one axis, pixel `s y + r` meets tap
`r + padding - s m` in the window of output pixel y + m. So with zeros put around the kernel and its
taps cut into runs of s, `W'[q, r]`,

    grad[s y + r] = sum over q of E[y + last - q] * W'[q, r]        last: the largest m

is a convolution of stride 1 that gives s*s numbers a channel. (Up to half of these products are by
the zeros. To compute each phase by itself, as engines/conv.py does, and to interleave the phases
afterwards took three times as long.)

The products are pure functions of tensors, which torch.compile turns into loops over pixels and
channels. They are given windows, views in which sizes and strides are all that tells one layer from
another, so one compiled variant serves every layer of a kernel. Two things make the loops fast.
Channels lie next to one another in every operand, so that they vectorise; and zeros are put around
the images before, by a straight copy in a tenth of the products' time, so that no tap has to ask at
every pixel whether the image ends there.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from engines.fusion import Fusion
from engines.im2col import check_codes, window_count
from models.layers import ConvLayer
from models.spec import CONTRACTION_MAX


class DepthwiseConv:
    """The products of one layer.

    Args:
        layer: Sizes; depthwise.
        fusion: Fuses the loops.
    """

    def __init__(self, layer: ConvLayer, fusion: Fusion) -> None:
        self._layer = layer
        self._forward = fusion.fuse(forward)
        self._grad_weight = fusion.fuse(_grad_weight)
        self._grad_input = fusion.fuse(_grad_input)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """Depthwise convolution of codes.

        Args:
            a: int8 `[B, H, W, C]`.
            w: int8 `[C, k*k]`.

        Returns:
            int32 `[B, Ho, Wo, C]`.

        Raises:
            TypeError: An operand is not int8.
            ValueError: A shape is not the layer's.
        """
        layer = self._layer
        check_codes("input", a, (len(a), *layer.input_shape))
        check_codes("weight", w, layer.weight_shape)
        taps = _innermost_channels(w.view(-1, layer.kernel, layer.kernel))
        return self._forward(self._seen(a), taps, layer.kernel)

    def grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """Gradient at the weights.

        Args:
            e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
            a: The input of the forward pass, int8 `[B, H, W, C]`.

        Returns:
            int32 `[C, k*k]`.

        Raises:
            TypeError: An operand is not int8.
            ValueError: A shape is not the layer's, or `B*Ho*Wo` exceeds `CONTRACTION_MAX`.
        """
        layer = self._layer
        check_codes("input", a, (len(a), *layer.input_shape))
        check_codes("error", e, (len(a), *layer.output_shape))
        if (windows := window_count(layer, len(a))) > CONTRACTION_MAX:
            raise ValueError(
                f"contraction over {windows} codes can overflow int32; the limit is "
                f"{CONTRACTION_MAX}: split the batch"
            )
        return self._grad_weight(e, self._seen(a), layer.kernel)

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """Gradient at the input.

        Args:
            e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
            w: int8 `[C, k*k]`.

        Returns:
            int32 `[B, H, W, C]`.

        Raises:
            TypeError: An operand is not int8.
            ValueError: A shape is not the layer's.
        """
        layer = self._layer
        check_codes("error", e, (len(e), *layer.output_shape))
        check_codes("weight", w, layer.weight_shape)
        kernel, stride = layer.kernel, layer.stride
        last = (stride - 1 + layer.padding) // stride
        before = stride * last - layer.padding
        runs = -(-(before + kernel) // stride)
        after = stride * runs - kernel - before
        cut = pad(w.view(-1, kernel, kernel), (before, after, before, after))
        cut = cut.view(-1, runs, stride, runs, stride)
        # [C, Q, s, Q, s] -> [Q, Q, s, s, C]
        taps = _innermost_channels(cut.transpose(2, 3))
        met = _windows(_with_zeros(e, runs - 1 - last, last), runs, 1)
        sums = self._grad_input(met, taps, runs)
        sums = sums.flatten(3, 4).flatten(1, 2)  # [B, Ho, s, Wo, s, C] -> [B, s Ho, s Wo, C]
        height, width = layer.in_size
        return sums[:, :height, :width].contiguous()  # no copy unless whole strides are more

    def _seen(self, a: Tensor) -> Tensor:
        layer = self._layer
        around = _with_zeros(a, layer.padding, layer.padding)
        return _windows(around, layer.kernel, layer.stride)


def forward(seen: Tensor, taps: Tensor, kernel: int) -> Tensor:
    """Sums over the taps of what each window sees."""
    sums = taps.new_zeros(())
    for i, j in itertools.product(range(kernel), repeat=2):
        sums = sums + seen[..., i, j] * taps[i, j]
    return sums


def _grad_weight(e: Tensor, seen: Tensor, kernel: int) -> Tensor:
    wide = e.to(torch.int32)
    sums = [
        (wide * seen[..., i, j]).sum(dim=(0, 1, 2), dtype=torch.int32)
        for i, j in itertools.product(range(kernel), repeat=2)
    ]
    return torch.stack(sums, dim=1)


def _grad_input(met: Tensor, taps: Tensor, runs: int) -> Tensor:
    sums = taps.new_zeros(())
    for i, j in itertools.product(range(runs), repeat=2):
        e = met[..., runs - 1 - i, runs - 1 - j]
        # [B, Ho, 1, Wo, 1, C] * [s, 1, s, C] -> [B, Ho, s, Wo, s, C]
        sums = sums + e[:, :, None, :, None] * taps[i, j][:, None]
    return sums


def _innermost_channels(kernels: Tensor) -> Tensor:
    """int32 `[..., C]` of int8 `[C, ...]`: small, but read for every pixel."""
    return kernels.movedim(0, -1).to(torch.int32, memory_format=torch.contiguous_format)


def _with_zeros(codes: Tensor, before: int, after: int) -> Tensor:
    """Codes with zeros around each image."""
    return pad(codes, (0, 0, before, after, before, after))


def _windows(around: Tensor, kernel: int, stride: int) -> Tensor:
    """What each window sees, `[B, Ho, Wo, C, k, k]`: a view."""
    return around.unfold(1, kernel, stride).unfold(2, kernel, stride)
