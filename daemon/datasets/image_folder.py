"""ImageFolder: one folder per class, images inside, as a directory or as one zip.

    <class>/<any name>.<jpg, png, ...>

The class is the first folder. Rows come shuffled, in the order of a digest of their paths: class by
class, a network that learns as they arrive would forget the first classes over the last, since what
is replayed to it is the newest. The order is the same each time, and a new file moves no other.
Only an image's header is read before it is known to be of a size that can be decoded.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from daemon.datasets.picture_files import (
    PictureFile,
    PictureFiles,
    pictures_in_folder,
    pictures_in_zip,
)
from daemon.datasets.rows import BadRow, Dataset, Row, label_of
from daemon.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    ToArray: TypeAlias = Callable[[Image], NDArray[np.uint8]]

_GREY_MODES = ("1", "L")
_MOST_PIXELS = 1 << 26
_CHUNK_BYTES = 1 << 20
_KEY_BYTES = 16


class ImageFolder(Dataset):
    """Every image under `<class>/`.

    Args:
        path: A directory or a zip.
        to_array: What an image becomes; None: its pixels as they are, uint8 `[height, width]` of a
            grey one and `[height, width, 3]` of any other. A `DataError` makes it a bad row.

    Raises:
        DataError: No class folders are found, or it cannot be read.
    """

    form: ClassVar[str] = "ImageFolder"

    def __init__(self, path: Path, to_array: ToArray | None = None) -> None:
        super().__init__(path)
        self._to_array = to_array or as_it_is
        with self._open() as found:
            self._count, self._notes = len(found.pictures), found.notes

    @property
    def count(self) -> int:
        """Images."""
        return self._count

    @property
    def shape(self) -> None:
        """Each image has its own size."""
        return None

    @property
    def files(self) -> list[Path]:
        """The zip, or every image."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(file for file in self.path.rglob("*") if file.is_file())

    @property
    def notes(self) -> list[str]:
        """The classes, and the files that are no images."""
        return self._notes

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; shuffled. A row's key is of its path and of the file's content."""
        with self._open() as found:
            for file in found.pictures[start:]:
                try:
                    if not file.named_in_utf8:
                        raise DataError("has a name that is not UTF-8; rename it")
                    x, key = _decode(file, self._to_array)
                except DataError as error:
                    yield BadRow(file.name, str(error))
                else:
                    yield Row(file.name, x, label_of(file.label), key=key)

    @contextmanager
    def _open(self) -> Iterator[PictureFiles]:
        opened = pictures_in_folder if self.path.is_dir() else pictures_in_zip
        try:
            with opened(self.path) as found:
                yield found
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error


def as_it_is(image: Image) -> NDArray[np.uint8]:
    """uint8 `[height, width]` of a grey image, `[height, width, 3]` of any other."""
    return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))


def _decode(file: PictureFile, to_array: ToArray) -> tuple[NDArray[np.uint8], bytes]:
    """Its pixels and its key."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("images need Pillow, which is not here: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
            with file.open() as stream:
                with Image.open(stream) as image:
                    if image.width * image.height > _MOST_PIXELS:
                        raise DataError(
                            f"has {image.width}x{image.height} pixels; wanted at most "
                            f"{_MOST_PIXELS:,}"
                        )
                    x = to_array(image)
                return x, _key(file, stream)
    except UnidentifiedImageError as error:
        # Pillow's message names the stream's address in memory.
        raise DataError("cannot be decoded: its content is of no known image format") from error
    except (
        OSError,
        ValueError,
        SyntaxError,  # Pillow's word for a broken PNG
        RuntimeError,  # the zip's member is encrypted
        zipfile.BadZipFile,
        zlib.error,
        Warning,
        Image.DecompressionBombError,
    ) as error:
        why = getattr(error, "strerror", None) or error  # with a file's path the name came twice
        raise DataError(f"cannot be decoded: {why}") from error


def _key(file: PictureFile, stream: IO[bytes]) -> bytes:
    digest = hashlib.blake2b(file.digest, digest_size=_KEY_BYTES)
    stream.seek(0)
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.digest()
