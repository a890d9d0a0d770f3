"""Where a convolution's windows lie, and their int8 codes laid out as rows of a matrix (im2col).

A convolution is a matrix product once every window is a row:

    columns[(n, y, x), (i, j, c)] = a[n, y * stride + i - padding, x * stride + j - padding, c]

with zero where the window hangs over the edge. Activations are NHWC, so the codes of one tap are
next to one another, those of one kernel row too, and a row of the matrix is a few straight copies.

The matrix is kernel^2 times as large as the activation, so it never exists as a whole: it is made
and used in tiles of rows, in memory that every tile uses again. A tile still lies in the cache when
its product is computed; the product of a whole matrix of 64 channels and 32,768 rows took half as
long again as those of its tiles.

Rows are padded here with zero codes to a multiple of 8, which the kernel demands of a contracted
axis (engines/int8.py): an RGB stem's 27 columns become 32 once, not once for every product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engines.int8 import Scratch
from models.layers import ConvLayer

# Columns of one tile: 4 MiB was the best of 1, 2, 3 and 4 on two cores with 32 MiB of third-level
# cache. Every tile costs some 50 microseconds beside its copies, so few and large ones win; but
# where the whole matrix is small, tiles are kept to an eighth of it, or they would be a good part
# of what training needs at all.
_LARGEST_TILE = 1 << 22
_SMALLEST_TILE = 1 << 18
_TILES = 8
_INT32_BYTES = 4
_MULTIPLE = 8


class Windows(NamedTuple):
    """A regular grid of windows over an image.

    Args:
        taps: Rows and columns of one window.
        stride: Step from one window to the next.
        origin: Row and column of the first window's first tap; negative: above or left of the
            image.
        grid: Windows down and across.
    """

    taps: tuple[int, int]
    stride: int
    origin: tuple[int, int]
    grid: tuple[int, int]


def windows_of(layer: ConvLayer) -> Windows:
    """The windows that the output of a convolution is computed from."""
    k, p = layer.kernel, layer.padding
    return Windows((k, k), layer.stride, (-p, -p), layer.out_size)


def window_count(layer: ConvLayer, batch: int) -> int:
    """Windows in a batch: the length of the weight gradient's contraction."""
    return batch * math.prod(layer.out_size)


class ConvScratch:
    """Memory for the large temporaries of a product, used again by the next call that is given it.

    The result lies in it as well, and is good until then. Not for two threads at once.

    Args:
        device: That of the operands.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.padded = Scratch(torch.int8, device)
        self.columns = Scratch(torch.int8, device)
        self.part = Scratch(torch.int32, device)
        self.sums = Scratch(torch.int32, device)


class Phase(NamedTuple):
    """Along one axis, the input pixels that meet the same taps.

    Input pixel h meets tap i in the window of output pixel `(h + padding - i) / stride`, where that
    is whole. So pixels a stride apart meet the same taps, and these lie a stride apart too.

    Args:
        pixel: The first of these input pixels.
        tap: The first tap that they meet.
        taps: How many; 0 for a stride longer than the kernel.
        met: Output pixel where the first of them meets its first tap. It meets its next tap one
            output pixel before, and the next input pixel meets the same tap one after.
    """

    pixel: int
    tap: int
    taps: int
    met: int


def phases(kernel: int, stride: int) -> list[Phase]:
    """The phases of an axis by first pixel, as many as the stride; padding is `kernel // 2`."""
    found = []
    for pixel in range(stride):
        met, tap = divmod(pixel + kernel // 2, stride)
        found.append(Phase(pixel, tap, len(range(tap, kernel, stride)), met))
    return found


class Tile(NamedTuple):
    """Some rows of the column matrix.

    Args:
        images: Which images of the batch.
        lines: Which lines of windows in each of these images.
        rows: Which rows of the matrix these are.
        columns: int8 `[rows, K]`, K padded to a multiple of 8; good until the next tile.
    """

    images: slice
    lines: slice
    rows: slice
    columns: Tensor


def check_codes(what: str, codes: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless `codes` is int8 of a shape.

    Raises:
        TypeError: Not int8.
        ValueError: Another shape.
    """
    if codes.dtype != torch.int8:
        raise TypeError(f"{what} must be int8 codes, got {codes.dtype}")
    if codes.shape != shape:
        raise ValueError(f"{what} has shape {[*codes.shape]}, wanted {[*shape]}")


def padded_to_multiple(size: int) -> int:
    """The next multiple of 8."""
    return -(-size // _MULTIPLE) * _MULTIPLE


def _tile_bytes(rows: int, inner: int, outputs: int, *, copied: bool) -> int:
    """Most bytes of columns at a time, for a matrix `[rows, inner]` with `outputs` per row.

    No fewer than int32 weights are: every tile of a weight gradient adds that many up, and every
    other tile's product packs their codes anew.
    """
    wanted = max(_SMALLEST_TILE, rows * inner // _TILES) if copied else _LARGEST_TILE
    return max(min(_LARGEST_TILE, wanted), outputs * inner * _INT32_BYTES)


def tiles(
    x: Tensor,
    windows: Windows,
    scratch: ConvScratch,
    *,
    outputs: int,
    tile_bytes: int | None = None,
    most_rows: int = 1 << 62,
) -> Iterator[Tile]:
    """The column matrix, tile after tile.

    Args:
        x: int8 `[B, H, W, C]`.
        windows: Which windows; one row each, taps row by row, channels innermost.
        scratch: Where a tile lies.
        outputs: Columns of what the matrix is multiplied by.
        tile_bytes: No tile's columns are larger, unless one line of windows already is; None:
            4 MiB, less for a small matrix, more for large weights.
        most_rows: No tile is longer, with the same exception.
    """
    (down, across), batch = windows.grid, len(x)
    inner = padded_to_multiple(windows.taps[0] * windows.taps[1] * x.shape[3])
    if tile_bytes is None:
        copied = not _as_they_lie(x, windows)
        tile_bytes = _tile_bytes(batch * down * across, inner, outputs, copied=copied)
    rows = min(most_rows, tile_bytes // inner)
    # Whole images where one fits, else some lines of one image.
    images = _even_part(batch, rows // (down * across))
    lines = down if images > 1 else _even_part(down, rows // across)
    for n in range(0, batch, images):
        for y in range(0, down, lines):
            image = slice(n, min(n + images, batch))
            line = slice(y, min(y + lines, down))
            columns = _columns(x[image], windows, line, scratch)
            start = (n * down + y) * across
            yield Tile(image, line, slice(start, start + len(columns)), columns)


def _even_part(total: int, most: int) -> int:
    """The size of parts that are as few and as equal as `most` allows."""
    parts = max(1, -(-total // max(1, most)))
    return max(1, -(-total // parts))


def _as_they_lie(x: Tensor, windows: Windows) -> bool:
    """Whether the rows of the matrix are the pixels themselves, and nothing need be copied."""
    return (*windows.taps, windows.stride) == (1, 1, 1) and x.shape[3] % _MULTIPLE == 0


def _columns(x: Tensor, windows: Windows, line: slice, scratch: ConvScratch) -> Tensor:
    """int8 `[images * lines * across, K]`: some lines of windows of some images."""
    region = _region(x, windows, line, scratch)
    channels, stride, (down, across) = x.shape[3], windows.stride, windows.taps
    if _as_they_lie(x, windows):
        return region.reshape(-1, channels)  # a view, unless the region was cut out of lines
    grid = (len(x), line.stop - line.start, windows.grid[1])
    inner = across * channels
    columns = scratch.columns.take(*grid, padded_to_multiple(down * inner))
    columns[..., down * inner :] = 0
    image, row, column, channel = region.stride()
    # One kernel row at a time: torch copies three runs of a line faster than runs of three lines.
    for i in range(down):
        seen = region[:, i:].as_strided(
            (*grid, across, channels), (image, row * stride, column * stride, column, channel)
        )
        columns[..., i * inner : (i + 1) * inner].view_as(seen).copy_(seen)
    return columns.view(-1, columns.shape[3])


def _region(x: Tensor, windows: Windows, line: slice, scratch: ConvScratch) -> Tensor:
    """What some lines of windows see, zeros around it where they hang over the edge."""
    first = (windows.origin[0] + line.start * windows.stride, windows.origin[1])
    counts = (line.stop - line.start, windows.grid[1])
    sizes = [
        (count - 1) * windows.stride + taps
        for count, taps in zip(counts, windows.taps, strict=True)
    ]
    low = [max(0, start) for start in first]
    high = [
        max(least, min(limit, start + size))
        for least, limit, start, size in zip(low, x.shape[1:3], first, sizes, strict=True)
    ]
    inside = x[:, low[0] : high[0], low[1] : high[1]]
    if inside.shape[1:3] == (*sizes,):
        return inside
    region = scratch.padded.take(len(x), *sizes, x.shape[3]).zero_()
    top, left = low[0] - first[0], low[1] - first[1]
    region[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return region
