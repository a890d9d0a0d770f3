"""NPZ, as `numpy.savez` writes it: one array of features, one of labels.

Never through `numpy.load`: a header of 128 bytes can ask it for 32 GiB. The sizes in each header
are compared with what the zip holds, objects (pickles) are refused, and rows are taken one piece at
a time.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from daemon.datasets.rows import LARGEST_LABEL, BadRow, Dataset, Row, label_of
from daemon.errors import DataError

_LABEL_NAMES = ("y", "label", "labels", "y_train", "target")
_FEATURE_NAMES = ("x", "X", "features", "images", "data", "x_train", "X_train")
_CHUNK_ROWS = 256


class NpzFile(Dataset):
    """Features and labels of an NPZ file.

    Args:
        path: The file.
        label_array: Name of the array of labels, when it has not one of the usual names.

    Raises:
        DataError: It is damaged, or does not hold one array of each kind.
    """

    form: ClassVar[str] = "NPZ"

    def __init__(self, path: Path, label_array: str | None = None) -> None:
        super().__init__(path)
        with self._archive() as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            x, y = self._choose(names, label_array)
            self._others = [name for name in names if name not in (x, y)]
            self._x, self._y = _Array(archive, f"{x}.npy"), _Array(archive, f"{y}.npy")
        if self._x.dtype.kind not in "buif" or len(self._x.shape) < 2:
            raise DataError(
                f"{path}: array {x!r} is {self._x.dtype} {[*self._x.shape]}; wanted numbers, "
                "one row a sample"
            )
        if self._y.dtype.kind not in "buifU" or len(self._y.shape) != 1:
            raise DataError(
                f"{path}: array {y!r} is {self._y.dtype} {[*self._y.shape]}; wanted one integer or "
                "text a sample"
            )
        if self._x.shape[0] != self._y.shape[0]:
            raise DataError(
                f"{path}: {self._x.shape[0]} samples and {self._y.shape[0]} labels; wanted as many"
            )
        if 0 in self._x.shape:
            raise DataError(
                f"{path}: x has shape {[*self._x.shape]}; wanted none of its sizes to be zero"
            )

    @property
    def count(self) -> int:
        """Rows of both arrays."""
        return self._x.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of the features."""
        return self._x.shape[1:]

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @property
    def notes(self) -> list[str]:
        """Arrays that are neither."""
        others = ", ".join(self._others[:10]) + ", ..." * (len(self._others) > 10)
        return [f"arrays left out: {others}"] if others else []

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; `x` is uint8 where bytes were kept, else float32."""
        with self._archive() as archive:
            number = start
            for xs, ys in zip(
                self._x.blocks(archive, start), self._y.blocks(archive, start), strict=True
            ):
                kind = np.uint8 if xs.dtype.kind == "b" or xs.dtype == np.uint8 else np.float32
                with np.errstate(over="ignore"):
                    rows = xs.astype(kind)
                for x, label in zip(rows, ys.tolist(), strict=True):
                    name = f"sample {number}"
                    number += 1
                    if isinstance(label, str):
                        yield Row(name, x, label_of(label))
                    elif label % 1 == 0 and abs(label) <= LARGEST_LABEL:
                        yield Row(name, x, int(label))
                    else:
                        yield BadRow(name, "has a label that is no whole number of 62 bits")

    def _choose(self, names: list[str], label_array: str | None) -> tuple[str, str]:
        """Names of the features' and the labels' array."""
        labels = [n for n in names if (n == label_array if label_array else n in _LABEL_NAMES)]
        features = [name for name in names if name not in labels]
        if len(features) > 1:
            features = [name for name in features if name in _FEATURE_NAMES]
        if len(labels) == len(features) == 1:
            return features[0], labels[0]
        raise DataError(
            f"{self.path}: found the arrays {', '.join(names[:10]) or 'none'}; wanted one of "
            "features and one of labels, x and y, or the labels named by --label-column"
        )

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error


class _Array:
    """One array: its header read and checked, its values still in the file."""

    def __init__(self, archive: zipfile.ZipFile, member: str) -> None:
        self._member = member
        where = f"{archive.filename}: array {member.removesuffix('.npy')!r}"
        with archive.open(member) as stream:
            try:
                version = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                self.shape, fortran, self.dtype = read(stream)
            except ValueError as error:
                raise DataError(f"{where} has no header that can be read: {error}") from error
            self._start = stream.tell()
        if self.dtype.hasobject:
            raise DataError(f"{where} holds Python objects, which are never unpickled")
        if fortran and len(self.shape) > 1:
            raise DataError(f"{where} is in Fortran order; save numpy.ascontiguousarray of it")
        promised = math.prod(self.shape) * self.dtype.itemsize
        held = archive.getinfo(member).file_size - self._start
        if promised != held:
            raise DataError(
                f"{where}: the header promises {[*self.shape]} = {promised} bytes, the file holds "
                f"{held}; copy the file again"
            )

    def blocks(self, archive: zipfile.ZipFile, start: int) -> Iterator[NDArray[Any]]:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with archive.open(self._member) as stream:
            stream.seek(self._start + start * size)
            for first in range(start, self.shape[0], _CHUNK_ROWS):
                rows = min(_CHUNK_ROWS, self.shape[0] - first)
                yield _read(stream, rows * size, self.dtype).reshape(rows, *self.shape[1:])


def _read(stream: IO[bytes], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it ends too early; copy the file again")
    return np.frombuffer(content, dtype=dtype)
