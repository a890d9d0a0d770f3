"""Kernels for matrices: quantizing, a dense unit's chains, the masters' step, a small product.

Each function takes torch tensors, checks them, and starts the kernels of `engines/kernels/` that
write its results; it waits for nothing. Integers, and floats that decide integers, have the bits of
the eager chain; only sums of floats (of squares along a row, of an error along a column) have an
order of their own, that of the kernels' sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.cuda_launch import THREADS, Launcher
from engines.gpu import Axes
from engines.int8 import QTensor, check_contraction
from engines.rounding import Noise

_INT8, _INT32, _FLOAT32 = torch.int8, torch.int32, torch.float32
# Blocks that look for the largest magnitude, enough for the eight multiprocessors of an Orin Nano.
_MOST_PARTS = 64
# Rows of a column's part: few enough that a small batch still fills the device.
_ROWS_EACH = 32
# As engines/kernels/product.cu has them.
MOST_ROWS = 16
_LANES, _OUTPUTS = 32, 4


def absmax_scale(on: Launcher, x: Tensor) -> Tensor:
    """float32 `[]`: scale of the whole of `x`, float32; see `engines.int8.absmax_scale`."""
    on.checked("x", x, _FLOAT32)
    count = min(_MOST_PARTS, -(-x.numel() // THREADS))
    parts = on.empty(_FLOAT32, count)
    on.rows("absmax_parts", count, x, parts, x.numel())
    return _joined_scale(on, parts)


def _joined_scale(on: Launcher, parts: Tensor) -> Tensor:
    scale = on.empty(_FLOAT32)
    on.rows("scale_of_parts", 1, parts, scale, parts.numel())
    return scale


def row_scales(on: Launcher, x: Tensor) -> Tensor:
    """float32 `[R, 1]`: scale of each row of `x`, float32 `[R, N]`."""
    on.checked("x", x, _FLOAT32, -1, -1)
    scales = on.empty(_FLOAT32, len(x), 1)
    on.rows("row_scales", len(x), x, scales, x.shape[1])
    return scales


def quantize(on: Launcher, x: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of `x`, float32, to the nearest; see `engines.int8.quantize`.

    Args:
        on: Starts kernels.
        x: float32.
        scale: float32, `[]`, or `[R, 1]` for an `x` of `[R, N]`.
    """
    on.checked("x", x, _FLOAT32)
    on.checked("scale", scale, _FLOAT32, *((len(x), 1) if scale.ndim else ()))
    codes = on.empty(_INT8, *x.shape)
    share = x.numel() // scale.numel()
    on.elements("quantize", x.numel(), x, scale, codes, x.numel(), share)
    return codes


def dense_forward(
    on: Launcher, sums: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a dense unit makes of its sums.

    Args:
        on: Starts kernels.
        sums: int32 `[B, out]`.
        scale: float32 `[]`, of the unit's input.
        weight_scale: float32 `[out, 1]`.
        bias: float32 `[out]`.
        epsilon: What a length adds to its mean square.

    Returns:
        Codes of the direction, int8 `[B, out]`, their scale, `[]`, and the length, `[B, 1]`.
    """
    rows, columns = on.checked("sums", sums, _INT32, -1, -1).shape
    given = (
        sums,
        on.checked("scale", scale, _FLOAT32),
        on.checked("weight scale", weight_scale, _FLOAT32, columns, 1),
        on.checked("bias", bias, _FLOAT32, columns),
    )
    length, reach = on.empty(_FLOAT32, rows, 1), on.empty(_FLOAT32, rows)
    on.rows("dense_rows", rows, *given, length, reach, columns, epsilon)
    output_scale = _joined_scale(on, reach)
    codes = on.empty(_INT8, rows, columns)
    count = sums.numel()
    on.elements("dense_codes", count, *given, length, output_scale, codes, count, columns)
    return codes, output_scale, length


class DenseErrors(NamedTuple):
    """An error behind the ReLU, rounded for the products that take it.

    Args:
        by_column: Codes `[B, out]`, scale `[1, out]`; None where not asked for.
        bias: Sum of each column, float32 `[out]`; with `by_column`.
        by_row: The error times the weights' scales, scale `[B, 1]`; None where not asked for.
    """

    by_column: QTensor | None
    bias: Tensor | None
    by_row: QTensor | None


def dense_errors(
    on: Launcher,
    error: Tensor,
    kept: Tensor,
    weight_scale: Tensor,
    noise: Noise,
    *,
    update: bool,
    propagate: bool,
) -> DenseErrors:
    """Round an error stochastically, per column where `update`, per row where `propagate`.

    Args:
        on: Starts kernels.
        error: float32 `[B, out]`.
        kept: int8 `[B, out]`: the error passes where they are above zero.
        weight_scale: float32 `[out, 1]`.
        noise: Of the rounding, `[B, out]`.
        update: Whether the weights learn.
        propagate: Whether the unit before is to learn from it.
    """
    rows, columns = on.checked("error", error, _FLOAT32, -1, -1).shape
    on.checked("kept codes", kept, _INT8, rows, columns)
    on.checked("weight scale", weight_scale, _FLOAT32, columns, 1)
    column_scale = bias = row_scale = by_column = by_row = None
    if update:
        grid, block = _columns_grid(rows, columns)
        parts = grid[1]
        reach, sums = on.empty(_FLOAT32, parts, columns), on.empty(_FLOAT32, parts, columns)
        sizes = rows, columns, _ROWS_EACH
        on.blocks("error_columns", grid, block, error, kept, reach, sums, *sizes)
        column_scale, bias = on.empty(_FLOAT32, 1, columns), on.empty(_FLOAT32, columns)
        joined = reach, sums, column_scale, bias, parts, columns
        on.elements("error_columns_joined", columns, *joined)
        by_column = on.empty(_INT8, rows, columns)
    if propagate:
        row_scale = on.empty(_FLOAT32, rows, 1)
        on.rows("error_rows", rows, error, kept, weight_scale, row_scale, columns)
        by_row = on.empty(_INT8, rows, columns)
    scales = weight_scale, column_scale, row_scale
    words = noise_arguments(on, noise, rows, columns)
    count = error.numel()
    out = by_column, by_row, count, columns
    on.elements("error_codes", count, error, kept, *scales, *words, *out)
    return DenseErrors(_pair(by_column, column_scale), bias, _pair(by_row, row_scale))


def noise_arguments(
    on: Launcher, noise: Noise, rows: int, columns: int
) -> tuple[Tensor, Tensor, int]:
    """The noise of an `[R, N]` matrix as kernels take it."""
    on.checked("noise rows", noise.rows, _INT32, rows, 1)
    on.checked("noise columns", noise.columns, _INT32, 1, columns)
    return noise.rows, noise.columns, int(noise.key)


def _pair(codes: Tensor | None, scale: Tensor | None) -> QTensor | None:
    return None if codes is None or scale is None else QTensor(codes, scale)


def gradient_rows(on: Launcher, values: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude and mean square of each row of int32 `[O, K]`: float32 `[O, 1]` each."""
    rows, columns = on.checked("gradient", values, _INT32, -1, -1).shape
    reach, mean_square = on.empty(_FLOAT32, rows, 1), on.empty(_FLOAT32, rows, 1)
    on.rows("gradient_rows", rows, values, reach, mean_square, columns)
    return reach, mean_square


def gradient_columns(on: Launcher, values: Tensor, scale: Tensor) -> Tensor:
    """Mean square of each column of `values * scale`: float32 `[1, K]`.

    Args:
        on: Starts kernels.
        values: int32 `[O, K]`.
        scale: float32 `[O, 1]`.
    """
    rows, columns = on.checked("gradient", values, _INT32, -1, -1).shape
    on.checked("scale", scale, _FLOAT32, rows, 1)
    grid, block = _columns_grid(rows, columns)
    sums = on.empty(_FLOAT32, grid[1], columns)
    sizes = rows, columns, _ROWS_EACH
    on.blocks("gradient_columns", grid, block, values, scale, sums, *sizes)
    return sums.sum(dim=0, keepdim=True) / rows


def _columns_grid(rows: int, columns: int) -> tuple[Axes, Axes]:
    """A thread for each column of each part of `_ROWS_EACH` rows."""
    return (-(-columns // THREADS), -(-rows // _ROWS_EACH), 1), (THREADS, 1, 1)


class Moved(NamedTuple):
    """Weights and momentum after a step.

    Args:
        codes: int8 `[O, K]`.
        remainder: Likewise; None for weights that have none.
        momentum: Likewise.
        largest_steps: Of each row's weights, in steps of the new codes, float32 `[O, 1]`.
        largest_momentum: Of each row's momentum, in codes, likewise.
    """

    codes: Tensor
    remainder: Tensor | None
    momentum: Tensor
    largest_steps: Tensor
    largest_momentum: Tensor


def move_rows(
    on: Launcher,
    values: Tensor,
    codes: Tensor,
    remainder: Tensor | None,
    momentum: Tensor,
    row_factors: tuple[Tensor, Tensor, Tensor, Tensor],
    column_factor: Tensor | None,
    noise: Noise,
) -> Moved:
    """The pass that moves weights which are their own codes; see `engines.masters`.

    Args:
        on: Starts kernels.
        values: The gradient's sums, int32 `[O, K]`.
        codes: int8 `[O, K]`.
        remainder: Likewise; None for weights that have none.
        momentum: Likewise.
        row_factors: float32 `[O, 1]` each: of the old momentum, the gradient, the old weights, and
            of the new momentum where it moves them.
        column_factor: float32 `[1, K]`, of the change; None: 1.
        noise: Of the rounding, `[O, K]`.
    """
    rows, columns = on.checked("gradient", values, _INT32, -1, -1).shape
    held = [("codes", codes), ("momentum", momentum)]
    for what, tensor in held if remainder is None else [*held, ("remainder", remainder)]:
        on.checked(what, tensor, _INT8, rows, columns)
    for factor in row_factors:
        on.checked("row factor", factor, _FLOAT32, rows, 1)
    if column_factor is not None:
        on.checked("column factor", column_factor, _FLOAT32, 1, columns)
    moved = Moved(
        on.empty(_INT8, rows, columns),
        None if remainder is None else on.empty(_INT8, rows, columns),
        on.empty(_INT8, rows, columns),
        on.empty(_FLOAT32, rows, 1),
        on.empty(_FLOAT32, rows, 1),
    )
    words = noise_arguments(on, noise, rows, columns)
    given = values, codes, remainder, momentum, *row_factors, column_factor
    on.rows("move_rows", rows, *given, *words, *moved, columns)
    return moved


def small_product(on: Launcher, a: Tensor, weight: Tensor) -> Tensor:
    """`A W^T` of few rows, exact, whatever the sizes: `torch._int_mm` wants 17 rows and more.

    Args:
        on: Starts kernels.
        a: int8 `[M, K]`, M at most `MOST_ROWS`.
        weight: int8 `[N, K]`.

    Returns:
        int32 `[M, N]`.

    Raises:
        ValueError: More rows, or K so long that an int32 sum could overflow.
    """
    rows, inner = on.checked("a", a, _INT8, -1, -1).shape
    outputs = len(on.checked("weight", weight, _INT8, -1, inner))
    if rows > MOST_ROWS:
        raise ValueError(f"a product of {rows} rows; wanted {MOST_ROWS} at most")
    check_contraction(inner)
    sums = on.empty(_INT32, rows, outputs)
    grid, block = (-(-outputs // _OUTPUTS), 1, 1), (_LANES, _OUTPUTS, 1)
    on.blocks("small_product", grid, block, a, weight, sums, rows, outputs, inner)
    return sums
