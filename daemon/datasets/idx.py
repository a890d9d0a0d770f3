"""IDX, as MNIST comes: a file of images and a file of labels, plain or .gz.

The format (yann.lecun.com/exdb/mnist): type, number of axes, sizes big-endian, then the values.
What the header promises is compared with what the file holds before anything is taken from it;
memory grows with what is read, never with what a header says.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from daemon.datasets.rows import BadRow, Dataset, Row
from daemon.errors import DataError

_UBYTE = 0x08
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 1024
PARTS = ("train", "t10k")


class IdxPair(Dataset):
    """Images and their labels.

    Args:
        path: As it was named.
        images: IDX file of bytes with three axes.
        labels: IDX file of bytes with one axis.

    Raises:
        DataError: A file is damaged, or there are not as many labels as images.
    """

    form: ClassVar[str] = "IDX"

    def __init__(self, path: Path, images: Path, labels: Path) -> None:
        super().__init__(path)
        self._images, self._labels = _IdxFile(images, axes=3), _IdxFile(labels, axes=1)
        if self._images.count != self._labels.count:
            raise DataError(
                f"{path}: {self._images.count} samples and {self._labels.count} labels; "
                "wanted as many"
            )

    @property
    def count(self) -> int:
        """Images."""
        return self._images.count

    @property
    def shape(self) -> tuple[int, ...]:
        """One channel: `[1, height, width]`."""
        return (1, *self._images.record_shape)

    @property
    def files(self) -> list[Path]:
        """Both."""
        return [self._images.path, self._labels.path]

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; `x` is uint8 `[1, height, width]`."""
        number = start
        blocks = zip(self._images.blocks(start), self._labels.blocks(start), strict=True)
        for images, labels in blocks:
            for image, label in zip(images[:, None], labels.tolist(), strict=True):
                yield Row(f"image {number}", image, label)
                number += 1


class _IdxFile:
    def __init__(self, path: Path, *, axes: int) -> None:
        self.path = path
        try:
            with self._open() as stream:
                head = stream.read(4)
                if len(head) < 4 or head != bytes((0, 0, _UBYTE, axes)):
                    raise DataError(
                        f"{path}: starts with {head.hex(' ') or 'nothing'}; an IDX file of bytes "
                        f"with {axes} axes starts with 00 00 08 0{axes}"
                    )
                sizes = stream.read(4 * axes)
                if len(sizes) < 4 * axes:
                    raise DataError(f"{path}: ends inside its header; copy the file again")
                shape: tuple[int, ...] = struct.unpack(f">{axes}I", sizes)
                self.count, self.record_shape = shape[0], shape[1:]
                self._start = 4 + 4 * axes
                promised = math.prod(shape)
                held = self._held(stream, promised + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read: {error}; copy the file again") from error
        if held != promised:
            told = f"only {held}" if held < promised else "more"
            raise DataError(
                f"{path}: the header promises {[*shape]} = {promised} bytes, the file "
                f"holds {told}; copy the file again"
            )
        if promised == 0:
            raise DataError(f"{path}: has shape {[*shape]}; wanted none of its sizes to be zero")

    def _open(self) -> IO[bytes]:
        if self.path.suffix == ".gz":
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")

    def _held(self, stream: IO[bytes], limit: int) -> int:
        """Bytes behind the header, counted up to `limit`; a compressed file is read for it."""
        if self.path.suffix != ".gz":
            return self.path.stat().st_size - self._start
        held = 0
        while held < limit and (chunk := stream.read(min(_CHUNK_BYTES, limit - held))):
            held += len(chunk)
        return held

    def blocks(self, start: int) -> Iterator[NDArray[np.uint8]]:
        size = math.prod(self.record_shape)
        try:
            with self._open() as stream:
                stream.seek(self._start + start * size)
                for first in range(start, self.count, _CHUNK_ROWS):
                    rows = min(_CHUNK_ROWS, self.count - first)
                    block = np.frombuffer(stream.read(rows * size), dtype=np.uint8)
                    yield block.reshape(rows, *self.record_shape)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read to its end: {error}") from error


def has_idx(folder: Path, part: str) -> bool:
    """Whether a folder holds the IDX images of `part`, `train` or `t10k`."""
    return _named(folder, part, "images", 3) is not None


def idx_folder(folder: Path, part: str) -> IdxPair:
    """The images of `part` in a folder that has them.

    Raises:
        DataError: Their labels are missing, or a file is damaged.
    """
    images, labels = _named(folder, part, "images", 3), _named(folder, part, "labels", 1)
    if images is None or labels is None:
        raise DataError(f"{folder}: found {part}-images, wanted {part}-labels-idx1-ubyte beside it")
    return IdxPair(folder, images, labels)


def idx_pair(images: Path) -> IdxPair:
    """An images file that was named itself; its labels lie beside it under the usual name.

    Raises:
        DataError: They do not, or a file is damaged.
    """
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    labels = images.with_name(name)
    if name == images.name or not labels.is_file():
        raise DataError(
            f"{images}: found no labels beside it; wanted <name>-images-idx3-ubyte and "
            "<name>-labels-idx1-ubyte"
        )
    return IdxPair(images, images, labels)


def _named(folder: Path, part: str, what: str, axes: int) -> Path | None:
    """`train-images-idx3-ubyte`, or with the dot that some copies have; plain or .gz."""
    names = (f"{part}-{what}{sign}idx{axes}-ubyte{end}" for sign in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)
