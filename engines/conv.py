"""The three products of a convolution, in integers: int8 codes in, int32 sums out, no scales.

With input codes `A` `[B, H, W, C]`, weight codes `W` `[O, k*k*C]` (tap by tap, channels innermost)
and error codes `E` at the output `[B, Ho, Wo, O]`, and `columns(.)` as engines/im2col.py has it:

    forward          columns(A) W^T          [B*Ho*Wo, k*k*C] @ [k*k*C, O]  -> [B*Ho*Wo, O]
    weight gradient  E^T columns(A)          [O, B*Ho*Wo] @ [B*Ho*Wo, k*k*C] -> [O, k*k*C]
    input gradient   columns(E) flipped(W)   [B*H*W, k*k*O] @ [k*k*O, C]     -> [B*H*W, C]

The input gradient of a stride s > 1 is usually written as a convolution of the error with zeros put
between its pixels, and would multiply s^2 - 1 of s^2 times by such a zero. Here the input pixels
are taken by phase, their position modulo s: a pixel of one phase meets only every s-th tap, so each
phase is a product of its own with a window of stride 1 over the error as it is.

Sums are exact. The weight gradient contracts over all windows of the batch, which may be more than
an int32 holds (`CONTRACTION_MAX`); above that the tiles' sums are added up in int64, and not in
float32, because then the result does not depend on where tiles end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from engines.im2col import (
    TILE_BYTES,
    Activation,
    ConvGeometry,
    ConvScratch,
    Windows,
    check_codes,
    padded_to_multiple,
    tiles,
)
from engines.int8 import int8_matmul
from models.spec import CONTRACTION_MAX


def conv_forward(
    a: Tensor,
    w: Tensor,
    geometry: ConvGeometry,
    *,
    activation: Activation | None = None,
    scratch: ConvScratch | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """Convolution of codes.

    Args:
        a: int8 `[B, H, W, C]`.
        w: int8 `[O, k*k*C]`.
        geometry: Sizes.
        activation: Applied to `a` elementwise, int8 to int8, while it is gathered.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time.

    Returns:
        int32 `[B*Ho*Wo, O]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's, or a window is longer than an int32 sum allows.
    """
    geometry.check_input(a)
    check_codes("weight", w, _weight_shape(geometry))
    scratch = scratch or ConvScratch()
    sums = scratch.sums.take(geometry.rows(len(a)), geometry.out_channels)
    operand = _padded(w).t()
    windows = geometry.windows
    for tile in tiles(a, windows, scratch, activation=activation, tile_bytes=tile_bytes):
        # [rows, k*k*C] @ [k*k*C, O] -> [rows, O], int32
        sums[tile.rows] = int8_matmul(tile.columns, operand)[:, : geometry.out_channels]
    return sums


def conv_grad_weight(
    e: Tensor,
    a: Tensor,
    geometry: ConvGeometry,
    *,
    activation: Activation | None = None,
    scratch: ConvScratch | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """Gradient at the weights.

    Args:
        e: Error codes at the output, int8 `[B*Ho*Wo, O]`.
        a: The input of the forward pass, int8 `[B, H, W, C]`.
        geometry: Sizes.
        activation: As in the forward pass.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time.

    Returns:
        `[O, k*k*C]`, int32; int64 where `B*Ho*Wo` exceeds `CONTRACTION_MAX`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's.
    """
    geometry.check_input(a)
    rows = geometry.rows(len(a))
    check_codes("error", e, (rows, geometry.out_channels))
    scratch = scratch or ConvScratch()
    shape = _weight_shape(geometry)
    if rows <= CONTRACTION_MAX:
        sums = scratch.sums.take(*shape).zero_()
    else:
        sums = torch.zeros(shape, dtype=torch.int64)
    for tile in tiles(
        a,
        geometry.windows,
        scratch,
        activation=activation,
        most_rows=CONTRACTION_MAX,
        tile_bytes=tile_bytes,
    ):
        # [O, rows] @ [rows, k*k*C] -> [O, k*k*C], int32
        sums += int8_matmul(e[tile.rows].t(), tile.columns)[:, : shape[1]]
    return sums


def conv_grad_input(
    e: Tensor,
    w: Tensor,
    geometry: ConvGeometry,
    *,
    scratch: ConvScratch | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """Gradient at the input.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, O]`.
        w: int8 `[O, k*k*C]`.
        geometry: Sizes.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time.

    Returns:
        int32 `[B, H, W, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the geometry's, or k*k*O is longer than an int32 sum allows.
    """
    channels, stride = geometry.in_channels, geometry.stride
    check_codes("error", e, (e.shape[0], *geometry.out_size, geometry.out_channels))
    check_codes("weight", w, _weight_shape(geometry))
    scratch = scratch or ConvScratch()
    sums = scratch.sums.take(len(e), *geometry.in_size, channels)
    if geometry.kernel < stride:
        sums.zero_()  # pixels between the windows have no taps
    taps = w.view(geometry.out_channels, geometry.kernel, geometry.kernel, channels)
    for row in range(min(stride, geometry.in_size[0])):
        for column in range(min(stride, geometry.in_size[1])):
            first = ((row + geometry.padding) % stride, (column + geometry.padding) % stride)
            if max(first) >= geometry.kernel:
                continue
            mine = taps[:, first[0] :: stride, first[1] :: stride].flip(1, 2)
            operand = mine.permute(1, 2, 0, 3).reshape(-1, channels)
            windows = Windows(
                (mine.shape[1], mine.shape[2]),
                1,
                (
                    (row + geometry.padding) // stride - mine.shape[1] + 1,
                    (column + geometry.padding) // stride - mine.shape[2] + 1,
                ),
                (
                    len(range(row, geometry.in_size[0], stride)),
                    len(range(column, geometry.in_size[1], stride)),
                ),
            )
            operand = _padded(operand)
            phase = sums[:, row::stride, column::stride]
            for tile in tiles(e, windows, scratch, tile_bytes=tile_bytes):
                # [rows, taps*O] @ [taps*O, C] -> [rows, C], int32
                product = int8_matmul(tile.columns, operand)[:, :channels]
                target = phase[tile.images, tile.lines]
                target.copy_(product.reshape(target.shape))
    return sums


def _weight_shape(geometry: ConvGeometry) -> tuple[int, int]:
    return geometry.out_channels, geometry.kernel**2 * geometry.in_channels


def _padded(matrix: Tensor) -> Tensor:
    """Zero codes around a matrix so that both sizes are multiples of 8."""
    rows, columns = matrix.shape
    more = padded_to_multiple(rows) - rows, padded_to_multiple(columns) - columns
    return pad(matrix, (0, more[1], 0, more[0])) if any(more) else matrix
