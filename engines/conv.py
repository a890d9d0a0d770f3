"""The three products of a convolution, in integers: int8 codes in, int32 sums out, no scales.

With input codes `A` `[B, H, W, C]`, weight codes `W` `[O, k*k*C]` (tap by tap, channels innermost)
and error codes `E` at the output `[B, Ho, Wo, O]`, and `columns(.)` as engines/im2col.py has it:

    forward          columns(A) W^T          [B*Ho*Wo, k*k*C] @ [k*k*C, O]   -> [B*Ho*Wo, O]
    weight gradient  E^T columns(A)          [O, B*Ho*Wo] @ [B*Ho*Wo, k*k*C] -> [O, k*k*C]
    input gradient   columns(E) flipped(W)   [B*H*W, k*k*O] @ [k*k*O, C]     -> [B*H*W, C]

The input gradient of a stride s > 1 is usually written as a convolution of the error with zeros put
between its pixels, and all but one in s^2 of its products would be by such a zero. Here the input
pixels are taken by phase, their position modulo s: a pixel of one phase meets only every s-th tap,
so each phase is a product of its own, with windows of stride 1 over the error as it is.

Sums are exact. The weight gradient contracts over all windows of the batch, which may be more than
an int32 holds (`CONTRACTION_MAX`); above that the tiles' sums are added up in int64, and not in
float32, so that the result does not depend on where tiles end.

The transposed operands W^T and E^T are views: no copy of them makes the kernel faster once products
are written to memory that is used again (`ConvScratch`), whereas into fresh memory E^T columns(A)
took a third longer, by page faults alone.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from engines.im2col import (
    ConvScratch,
    Windows,
    check_codes,
    padded_to_multiple,
    phases,
    tiles,
    window_count,
    windows_of,
)
from engines.int8 import int8_matmul
from models.layers import ConvLayer
from models.spec import CONTRACTION_MAX


def conv_forward(
    a: Tensor,
    w: Tensor,
    layer: ConvLayer,
    *,
    scratch: ConvScratch | None = None,
    tile_bytes: int | None = None,
) -> Tensor:
    """Convolution of codes.

    Args:
        a: int8 `[B, H, W, C]`.
        w: int8 `[O, k*k*C]`.
        layer: Sizes; not depthwise.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time; None: see
            `engines.im2col.tiles`.

    Returns:
        int32 `[B*Ho*Wo, O]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the layer's, or k*k*C is longer than an int32 sum allows.
    """
    check_codes("input", a, (len(a), *layer.input_shape))
    check_codes("weight", w, layer.weight_shape)
    scratch = scratch or ConvScratch(a.device)
    rows = window_count(layer, len(a))
    sums = scratch.sums.take(rows, layer.out_channels)
    operand = _padded_rows(w.t())
    windows, outputs = windows_of(layer), layer.out_channels
    for tile in tiles(a, windows, scratch, outputs=outputs, tile_bytes=tile_bytes):
        # [rows, k*k*C] @ [k*k*C, O] -> [rows, O], int32
        int8_matmul(tile.columns, operand, out=sums[tile.rows])
    return sums


def conv_grad_weight(
    e: Tensor,
    a: Tensor,
    layer: ConvLayer,
    *,
    scratch: ConvScratch | None = None,
    tile_bytes: int | None = None,
) -> Tensor:
    """Gradient at the weights.

    Args:
        e: Error codes at the output, int8 `[B*Ho*Wo, O]`.
        a: The input of the forward pass, int8 `[B, H, W, C]`.
        layer: Sizes; not depthwise.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time; None: see
            `engines.im2col.tiles`.

    Returns:
        `[O, k*k*C]`, int32; int64 where `B*Ho*Wo` exceeds `CONTRACTION_MAX`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the layer's.
    """
    check_codes("input", a, (len(a), *layer.input_shape))
    rows = window_count(layer, len(a))
    check_codes("error", e, (rows, layer.out_channels))
    scratch = scratch or ConvScratch(a.device)
    shape = layer.out_channels, padded_to_multiple(layer.contraction)
    gathered = tiles(
        a,
        windows_of(layer),
        scratch,
        outputs=layer.out_channels,
        tile_bytes=tile_bytes,
        most_rows=CONTRACTION_MAX,
    )
    # [O, rows] @ [rows, k*k*C] -> [O, k*k*C], int32
    if rows <= CONTRACTION_MAX:
        first = next(gathered)
        sums = int8_matmul(e[first.rows].t(), first.columns, out=scratch.sums.take(*shape))
    else:
        sums = e.new_zeros(shape, dtype=torch.int64)
    for tile in gathered:
        sums += int8_matmul(e[tile.rows].t(), tile.columns, out=scratch.part.take(*shape))
    return sums[:, : layer.contraction].contiguous()


def conv_grad_input(
    e: Tensor,
    w: Tensor,
    layer: ConvLayer,
    *,
    scratch: ConvScratch | None = None,
    tile_bytes: int | None = None,
) -> Tensor:
    """Gradient at the input.

    Args:
        e: Error codes at the output, int8 `[B, Ho, Wo, O]`.
        w: int8 `[O, k*k*C]`.
        layer: Sizes; not depthwise.
        scratch: Memory to use again, in which the result lies too; None: memory of its own.
        tile_bytes: Most bytes of columns at a time; None: see
            `engines.im2col.tiles`.

    Returns:
        int32 `[B, H, W, C]`.

    Raises:
        TypeError: An operand is not int8.
        ValueError: A shape is not the layer's, or k*k*O is longer than an int32 sum allows.
    """
    check_codes("error", e, (len(e), *layer.output_shape))
    check_codes("weight", w, layer.weight_shape)
    scratch = scratch or ConvScratch(e.device)
    channels, stride = layer.in_channels, layer.stride
    sums = scratch.sums.take(len(e), *layer.in_size, channels)
    if layer.kernel < stride:
        sums.zero_()  # some pixels meet no tap
    taps = w.view(layer.out_channels, layer.kernel, layer.kernel, channels)
    for row, column in itertools.product(phases(layer.kernel, stride), repeat=2):
        pixels = sums[:, row.pixel :: stride, column.pixel :: stride]
        if not (row.taps and column.taps and pixels.numel()):
            continue
        met = taps[:, row.tap :: stride, column.tap :: stride].flip(1, 2)
        operand = _padded_rows(met.permute(1, 2, 0, 3).reshape(-1, channels))
        windows = Windows(
            taps=(row.taps, column.taps),
            stride=1,
            origin=(row.met - row.taps + 1, column.met - column.taps + 1),
            grid=(pixels.shape[1], pixels.shape[2]),
        )
        for tile in tiles(e, windows, scratch, outputs=channels, tile_bytes=tile_bytes):
            mine = pixels[tile.images, tile.lines]
            straight = mine.is_contiguous()
            shape = len(tile.columns), channels
            out = mine.view(shape) if straight else scratch.part.take(*shape)
            # [rows, taps*O] @ [taps*O, C] -> [rows, C], int32
            int8_matmul(tile.columns, operand, out=out)
            if not straight:
                mine.copy_(out.view(mine.shape))
    return sums


def _padded_rows(matrix: Tensor) -> Tensor:
    """Zero codes below a matrix, to match the zero codes beside the columns."""
    more = padded_to_multiple(len(matrix)) - len(matrix)
    return pad(matrix, (0, 0, 0, more)) if more else matrix
