"""The three products of a depthwise convolution, in integers: int8 codes in, int32 sums out.

Every channel has a kernel of its own, so there is no matrix to multiply by; each product is a sum
over k^2 taps of elementwise products. With input codes `A` `[B, H, W, C]`, weights `W` `[C, k*k]`
and error codes `E` `[B, Ho, Wo, C]`, `A_ij` being `A` as tap (i, j) sees it:

    forward          sum_ij A_ij * W[:, ij]
    weight gradient  sum over batch and pixels of E * A_ij
    input gradient   at each input pixel, sum over the windows that see it of E * W[:, ij]

Pure functions of tensors and ints without data-dependent control flow, so that torch.compile fuses
each into one loop. Channels are innermost everywhere, also in the reduction: that is the axis that
vectorises.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from engines.im2col import ConvGeometry, check_codes
from models.spec import CONTRACTION_MAX


def depthwise_forward(a: Tensor, w: Tensor, geometry: ConvGeometry) -> Tensor:
    """Depthwise convolution of codes.

    Args:
        a: int8 `[B, H, W, C]`.
        w: int8 `[C, k*k]`.
        geometry: Sizes.

    Returns:
        int32 `[B, Ho, Wo, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's.
    """
    geometry.check_input(a)
    check_codes("weight", w, _weight_shape(geometry))
    p = geometry.padding
    a = pad(a, (0, 0, p, p, p, p))
    sums = torch.zeros((len(a), *geometry.out_size, geometry.in_channels), dtype=torch.int32)
    for i in range(geometry.kernel):
        for j in range(geometry.kernel):
            seen = _seen(a, i, j, geometry).to(torch.int32)
            sums = sums + seen * w[:, i * geometry.kernel + j].to(torch.int32)
    return sums


def depthwise_grad_weight(e: Tensor, a: Tensor, geometry: ConvGeometry) -> Tensor:
    """Gradient at the weights.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
        a: The input of the forward pass, int8 `[B, H, W, C]`.
        geometry: Sizes.

    Returns:
        int32 `[C, k*k]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's, or `B*Ho*Wo` exceeds `CONTRACTION_MAX`.
    """
    geometry.check_input(a)
    check_codes("error", e, (len(a), *geometry.out_size, geometry.out_channels))
    if geometry.rows(len(a)) > CONTRACTION_MAX:
        raise ValueError(
            f"contraction over {geometry.rows(len(a))} codes can overflow int32; the limit is "
            f"{CONTRACTION_MAX}: split the batch"
        )
    p = geometry.padding
    a = pad(a, (0, 0, p, p, p, p))
    wide = e.to(torch.int32)
    taps = [
        (wide * _seen(a, i, j, geometry).to(torch.int32)).sum(dim=(0, 1, 2), dtype=torch.int32)
        for i in range(geometry.kernel)
        for j in range(geometry.kernel)
    ]
    return torch.stack(taps, dim=1)


def depthwise_grad_input(e: Tensor, w: Tensor, geometry: ConvGeometry) -> Tensor:
    """Gradient at the input.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
        w: int8 `[C, k*k]`.
        geometry: Sizes.

    Returns:
        int32 `[B, H, W, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's.
    """
    check_codes("error", e, (len(e), *geometry.out_size, geometry.out_channels))
    check_codes("weight", w, _weight_shape(geometry))
    (height, width), p = geometry.in_size, geometry.padding
    sums = torch.zeros((len(e), height + 2 * p, width + 2 * p, w.shape[0]), dtype=torch.int32)
    wide = e.to(torch.int32)
    for i in range(geometry.kernel):
        for j in range(geometry.kernel):
            seen = _seen(sums, i, j, geometry)
            seen += wide * w[:, i * geometry.kernel + j].to(torch.int32)
    return sums[:, p : p + height, p : p + width].contiguous()


def _seen(padded: Tensor, i: int, j: int, geometry: ConvGeometry) -> Tensor:
    """The pixels that tap (i, j) of all windows sees, `[B, Ho, Wo, C]`."""
    stride, (down, across) = geometry.stride, geometry.out_size
    rows = slice(i, i + (down - 1) * stride + 1, stride)
    columns = slice(j, j + (across - 1) * stride + 1, stride)
    return padded[:, rows, columns]


def _weight_shape(geometry: ConvGeometry) -> tuple[int, int]:
    return geometry.in_channels, geometry.kernel**2
