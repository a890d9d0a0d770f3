"""NumPy oracles of the CUDA kernels: float32 as they round it, sums in the order that they take.

Where no float sum is in it, an oracle is the arithmetic of `tests.reference`, element by element.
"""

from __future__ import annotations

import numpy as np

from tests import reference

F = np.float32
# Of engines/kernels/numeric.cuh.
THREADS, GROUPS, PIXEL_LANES = 256, 16, 8
CODE_MAX = 127


def block_sums(x):
    """Sum of each row, `[R, 1]`, as a block takes it: by thread, then by group, each in order."""
    threads = _added(x, THREADS)
    groups = _added(threads, GROUPS)
    return _added(groups, 1)


def _added(x, places: int):
    """`[R, places]`: of each row, what lies `places` apart, added up in order."""
    rows, columns = x.shape
    padded = np.zeros((rows, -(-columns // places) * places), F)
    padded[:, :columns] = x
    total = padded[:, :places]
    for start in range(places, padded.shape[1], places):
        total = total + padded[:, start : start + places]
    return total


def parted_sums(x, rows_each: int):
    """Sum of each column, `rows_each` rows at a time, parts then added up in order."""
    total = np.zeros(x.shape[1], F)
    for start in range(0, len(x), rows_each):
        part = np.zeros(x.shape[1], F)
        for row in x[start : start + rows_each]:
            part = part + row
        total = total + part
    return total


def pixel_sums(x):
    """Sum over the pixels of `[B, H, W, C]`: each lane a stride, lanes then added up in order."""
    images, _, _, channels = x.shape
    flat = x.reshape(images, -1, channels)
    lanes = np.zeros((PIXEL_LANES, images, channels), F)
    for pixel in range(flat.shape[1]):
        lanes[pixel % PIXEL_LANES] = lanes[pixel % PIXEL_LANES] + flat[:, pixel]
    total = lanes[0]
    for lane in lanes[1:]:
        total = total + lane
    return total


def nearest(steps):
    return np.clip(np.rint(steps), -CODE_MAX, CODE_MAX).astype(np.int8)


def stochastic(steps, draws, limit: int = CODE_MAX, bits: int = 16):
    """int64 codes."""
    parts = np.rint(steps * F(1 << bits)).astype(np.int64)
    return np.clip((parts + (draws >> (16 - bits))) >> bits, -limit, limit)


def halves(shape, key: int):
    """The two draws of each element, int64."""
    words = reference.words(shape, key).astype(np.int64)
    return words & 0xFFFF, words >> 16


def dense_forward(sums, scale, weight_scale, bias, epsilon: float):
    """Codes, scale, length, of `[B, out]`; `weight_scale`: `[out]`."""
    y = np.maximum(sums.astype(F) * (scale * weight_scale) + bias, F(0))
    length = np.sqrt(block_sums(y * y) / F(sums.shape[1]) + F(epsilon))
    reach = y.max(axis=1, keepdims=True) * (F(1) / length)
    output_scale = reference.absmax_scale(reach)
    codes = nearest(y * (F(1) / length) * (F(1) / output_scale))
    return codes, output_scale, length


def dense_errors(error, kept, weight_scale, key: int, rows_each: int):
    """By column: codes, scale `[out]`, sums `[out]`; by row: codes, scale `[B, 1]`."""
    e = np.where(kept > 0, error, F(0))
    column_scale = reference.absmax_scale(e, axis=0)
    folded = e * weight_scale
    row_scale = reference.absmax_scale(folded, axis=1)
    low, high = halves(e.shape, key)
    by_column = stochastic(e * (F(1) / column_scale), low)
    by_row = stochastic(folded * (F(1) / row_scale), high)
    return by_column, column_scale, parted_sums(e, rows_each), by_row, row_scale


def move_rows(values, codes, remainder, momentum, row_factors, column_factor, key: int):
    """Codes, remainder, momentum, largest steps and largest momentum."""
    kept, taken, stays, moves = row_factors
    m = momentum.astype(F) * kept + values.astype(F) * taken
    change = m * moves
    if column_factor is not None:
        change = change * column_factor
    held = codes.astype(np.int64)
    if remainder is not None:
        held = held * 256 + remainder
    steps = held.astype(F) * stays - change
    low, high = halves(values.shape, key)
    pushed = stochastic(m, high)
    if remainder is None:
        new_codes, rest = stochastic(steps, low), None
    else:
        moved = stochastic(steps, low, CODE_MAX * 256, 8)
        new_codes = (moved + 128) >> 8
        rest = moved - 256 * new_codes
    largest = np.abs(steps).max(axis=1, keepdims=True)
    return new_codes, rest, pushed, largest, np.abs(pushed).max(axis=1, keepdims=True)


def columns(x, taps, stride: int, origin, lines: slice, across: int):
    """`[B * lines * across, taps * C]`, one window after another; zeros beyond the image."""
    images, height, width, channels = x.shape
    rows = []
    for image in range(images):
        for line in range(lines.start, lines.stop):
            for place in range(across):
                row = np.zeros((*taps, channels), x.dtype)
                for i, j in np.ndindex(*taps):
                    y, z = line * stride + i + origin[0], place * stride + j + origin[1]
                    if 0 <= y < height and 0 <= z < width:
                        row[i, j] = x[image, y, z]
                rows.append(row.ravel())
    return np.stack(rows)


def norm_error(values, codes, activation: str, six):
    """dz: the error at the activity, where the activation lets it through."""
    e = values.astype(F)
    if activation == "relu6":
        e = np.where(codes.astype(F) < six, e, F(0))
    return e if activation == "none" else np.where(codes > 0, e, F(0))
