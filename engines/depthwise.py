"""The three products of a depthwise convolution, in integers: int8 codes in, int32 sums out.

Every channel has a kernel of its own, so there is no matrix to multiply by; each product is a sum
of elementwise products over taps or over pixels. With input codes `A` `[B, H, W, C]`, weight codes
`W` `[C, k*k]`, error codes `E` at the output `[B, Ho, Wo, C]`, and `A_ij` for the pixels that tap
(i, j) of all windows sees, `[B, Ho, Wo, C]`:

    forward          sum over taps of A_ij * W_ij
    weight gradient  sum over batch and pixels of E * A_ij
    input gradient   sum over windows that see the pixel of E * W_ij, pixels taken by phase of the
                     stride as in engines/conv.py: a sum over taps again, with the kernel turned

These are pure functions of tensors and ints, without control flow that depends on data, so that
torch.compile fuses each, with what comes before and after it, into one loop. Channels are innermost
in every operand, so that the loop vectorises.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from engines.im2col import Activation, ConvGeometry, Phase, check_codes, phases
from models.spec import CONTRACTION_MAX


def depthwise_forward(
    a: Tensor, w: Tensor, geometry: ConvGeometry, *, activation: Activation | None = None
) -> Tensor:
    """Depthwise convolution of codes.

    Args:
        a: int8 `[B, H, W, C]`.
        w: int8 `[C, k*k]`.
        geometry: Sizes; as many channels out as in.
        activation: Applied to `a` elementwise, int8 to int8.

    Returns:
        int32 `[B, Ho, Wo, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's.
    """
    geometry.check_input(a)
    kernel = _kernel(w, geometry)
    around = _padded(a, geometry, activation)
    sums = a.new_zeros((len(a), *geometry.out_size, len(w)), dtype=torch.int32)
    for i, j in itertools.product(range(geometry.kernel), repeat=2):
        sums.addcmul_(_seen(around, i, j, geometry), kernel[i, j])
    return sums


def depthwise_grad_weight(
    e: Tensor, a: Tensor, geometry: ConvGeometry, *, activation: Activation | None = None
) -> Tensor:
    """Gradient at the weights.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
        a: The input of the forward pass, int8 `[B, H, W, C]`.
        geometry: Sizes; as many channels out as in.
        activation: As in the forward pass.

    Returns:
        int32 `[C, k*k]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's, or `B*Ho*Wo` exceeds `CONTRACTION_MAX`.
    """
    geometry.check_input(a)
    geometry.check_error(e)
    if (windows := geometry.rows(len(a))) > CONTRACTION_MAX:
        raise ValueError(
            f"contraction over {windows} codes can overflow int32; the limit is {CONTRACTION_MAX}: "
            "split the batch"
        )
    around = _padded(a, geometry, activation)
    wide = e.to(torch.int32)
    taps = [
        (wide * _seen(around, i, j, geometry)).flatten(0, 2).sum(dim=0, dtype=torch.int32)
        for i, j in itertools.product(range(geometry.kernel), repeat=2)
    ]
    return torch.stack(taps, dim=1)


def depthwise_grad_input(e: Tensor, w: Tensor, geometry: ConvGeometry) -> Tensor:
    """Gradient at the input.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, C]`.
        w: int8 `[C, k*k]`.
        geometry: Sizes; as many channels out as in.

    Returns:
        int32 `[B, H, W, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's.
    """
    geometry.check_error(e)
    kernel = _kernel(w, geometry)
    (height, width), stride = geometry.in_size, geometry.stride
    rows, columns = phases(geometry, 0), phases(geometry, 1)
    # Every phase as if it had as many pixels as the first, which has most: then they interleave.
    down, across = rows[0].pixels, columns[0].pixels
    (above, below), (left_of, right_of) = (
        _overhang(rows, geometry.out_size[0]),
        _overhang(columns, geometry.out_size[1]),
    )
    around = pad(e, (0, 0, left_of, right_of, above, below))
    lines = []
    for row in rows:
        pixels = []
        for column in columns:
            sums = e.new_zeros((len(e), down, across, len(w)), dtype=torch.int32)
            for i, j in itertools.product(range(row.taps), range(column.taps)):
                top, left = above + row.met - i, left_of + column.met - j
                met = around[:, top : top + down, left : left + across]
                sums.addcmul_(met, kernel[row.tap + i * stride, column.tap + j * stride])
            pixels.append(sums)
        lines.append(torch.stack(pixels, dim=3))
    # Rows, row phases, columns and column phases are axes 1 to 4.
    interleaved = torch.stack(lines, dim=2).flatten(3, 4).flatten(1, 2)
    return interleaved[:, :height, :width].contiguous()


def _padded(a: Tensor, geometry: ConvGeometry, activation: Activation | None) -> Tensor:
    """The operand with its zeros around, int8 `[B, H + 2 padding, W + 2 padding, C]`."""
    p = geometry.padding
    return pad(a if activation is None else activation(a), (0, 0, p, p, p, p))


def _overhang(along: list[Phase], size: int) -> tuple[int, int]:
    """How far, before and after, the pixels of an axis look beyond `size` output pixels."""
    before = max(phase.taps - 1 - phase.met for phase in along)
    after = max(phase.met + along[0].pixels - size for phase in along)
    return max(0, before), max(0, after)


def _kernel(w: Tensor, geometry: ConvGeometry) -> Tensor:
    """int32 `[k, k, C]` of int8 `[C, k*k]`, in memory of its own.

    `as_strided` changes nothing, but makes inductor write the transposed copy out before it is
    used. Otherwise that copy is fused into every use, read at a stride, and nothing vectorises:
    five times slower.
    """
    check_codes("weight", w, (geometry.in_channels, geometry.kernel**2))
    taps = w.t().to(torch.int32).contiguous()
    shape = (geometry.kernel, geometry.kernel, len(w))
    return taps.as_strided(shape, (shape[1] * shape[2], shape[2], 1))


def _seen(around: Tensor, i: int, j: int, geometry: ConvGeometry) -> Tensor:
    """The pixels that tap (i, j) of all windows sees, `[B, Ho, Wo, C]`."""
    stride, (down, across) = geometry.stride, geometry.out_size
    rows = slice(i, i + (down - 1) * stride + 1, stride)
    columns = slice(j, j + (across - 1) * stride + 1, stride)
    return around[:, rows, columns]
