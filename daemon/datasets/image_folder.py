"""ImageFolder: one folder per class, images inside, as a directory or as one zip.

    <class>/<any name>.<jpg, png, ...>

A single folder around all class folders is stepped over. Only an image's header is read before it
is known to be of a size that can be decoded.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from daemon.datasets.rows import BadRow, Dataset, Row, label_of
from daemon.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    ToArray: TypeAlias = Callable[[Image], NDArray[np.uint8]]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_GREY_MODES = ("1", "L")
_MOST_PIXELS = 1 << 26


class _Entry(NamedTuple):
    """One image: its path inside the folder or zip, and how to open its bytes."""

    path: PurePosixPath
    open: Callable[[], IO[bytes]]


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
        with self._entries() as entries:
            self._count = len(entries)

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

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """See `Dataset.rows`; in the order of their names."""
        with self._entries() as entries:
            for entry in entries[start:]:
                try:
                    x = _decode(entry, self._to_array)
                except DataError as error:
                    yield BadRow(str(entry.path), str(error))
                else:
                    yield Row(str(entry.path), x, label_of(entry.path.parts[0]))

    @contextmanager
    def _entries(self) -> Iterator[list[_Entry]]:
        try:
            if self.path.is_dir():
                files = (file for file in self.path.rglob("*") if file.is_file())
                found = [
                    _Entry(PurePosixPath(f.relative_to(self.path).as_posix()), _opener(f))
                    for f in files
                ]
                yield self._inside_class_folders(found)
                return
            with zipfile.ZipFile(self.path) as archive:
                members = (info for info in archive.infolist() if not info.is_dir())
                found = [
                    _Entry(PurePosixPath(m.filename), _member_opener(archive, m)) for m in members
                ]
                yield self._inside_class_folders(found)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error

    def _inside_class_folders(self, found: list[_Entry]) -> list[_Entry]:
        entries = sorted(filter(_is_image, found), key=lambda entry: entry.path)
        first_folders = {entry.path.parts[0] for entry in entries}
        if len(first_folders) == 1 and all(len(entry.path.parts) > 2 for entry in entries):
            entries = [e._replace(path=PurePosixPath(*e.path.parts[1:])) for e in entries]
        loose = [entry for entry in entries if len(entry.path.parts) < 2]
        if not entries or loose:
            found_what = f"{str(loose[0].path)!r} in no class folder" if loose else "no images"
            raise DataError(
                f"{self.path}: found {found_what}; wanted <class>/<name> with names ending in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        classes = {entry.path.parts[0] for entry in entries}
        if {name.lower() for name in classes} <= _SPLIT_NAMES:
            raise DataError(
                f"{self.path}: found the folders {', '.join(sorted(classes))}, which are splits, "
                "not classes; give one of them"
            )
        return entries


def as_it_is(image: Image) -> NDArray[np.uint8]:
    """uint8 `[height, width]` of a grey image, `[height, width, 3]` of any other."""
    return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))


def _decode(entry: _Entry, to_array: ToArray) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need Pillow, which is not here: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
            with entry.open() as stream, Image.open(stream) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise DataError(
                        f"has {image.width}x{image.height} pixels; wanted at most {_MOST_PIXELS:,}"
                    )
                return to_array(image)
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
        raise DataError(f"{entry.path} cannot be decoded: {error}") from error


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _is_image(entry: _Entry) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in entry.path.parts)
    return not hidden and entry.path.suffix.lower() in IMAGE_SUFFIXES
