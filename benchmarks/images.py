"""ImageFolder: one folder per class, images inside, as a directory or as one zip.

    <class>/<any name>.<jpg, png, ...>

A single folder around all class folders is stepped over. All images must have one size; they become
RGB, or one grey channel where every image is grey. Only the header of an image is read before its
size is compared with the first one's, so an image that claims to be huge is refused unopened.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import DataError, Samples, label_samples

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_GREY_MODES = ("1", "L")


class _Entry(NamedTuple):
    """One image: its path inside the folder or zip, and how to open its bytes."""

    path: PurePosixPath
    open: Callable[[], IO[bytes]]


def load_image_folder(path: Path) -> Samples:
    """Every image under `<class>/`, pixels as bytes.

    Args:
        path: A directory or a zip.

    Returns:
        Samples of shape `[3, height, width]`, or `[1, height, width]` where all images are grey.

    Raises:
        DataError: No class folders are found, an image is damaged, or sizes differ.
    """
    try:
        with _entries(path) as entries:
            images = _inside_class_folders(entries, path)
            pixels = _decode(images, path)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    labels = np.array([image.path.parts[0] for image in images])
    return label_samples(_stack(pixels), labels, str(path))


@contextmanager
def _entries(path: Path) -> Iterator[list[_Entry]]:
    """Images of a directory or zip, in the order of their names."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        found = [_Entry(PurePosixPath(f.relative_to(path).as_posix()), _opener(f)) for f in files]
        yield sorted(filter(_is_image, found), key=lambda entry: entry.path)
        return
    with zipfile.ZipFile(path) as archive:
        members = (info for info in archive.infolist() if not info.is_dir())
        found = [_Entry(PurePosixPath(m.filename), _member_opener(archive, m)) for m in members]
        yield sorted(filter(_is_image, found), key=lambda entry: entry.path)


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _is_image(entry: _Entry) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in entry.path.parts)
    return not hidden and entry.path.suffix.lower() in IMAGE_SUFFIXES


def _inside_class_folders(entries: list[_Entry], path: Path) -> list[_Entry]:
    first_folders = {entry.path.parts[0] for entry in entries}
    if len(first_folders) == 1 and all(len(entry.path.parts) > 2 for entry in entries):
        entries = [entry._replace(path=PurePosixPath(*entry.path.parts[1:])) for entry in entries]
    loose = [entry for entry in entries if len(entry.path.parts) < 2]
    if not entries or loose:
        found = f"{str(loose[0].path)!r} in no class folder" if loose else "no images"
        raise DataError(
            f"{path}: found {found}; wanted <class>/<name> with names ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    classes = {entry.path.parts[0] for entry in entries}
    if {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"{path}: found the folders {', '.join(sorted(classes))}, which are splits, not "
            "classes; give one as --data and one as --test"
        )
    return entries


def _decode(entries: list[_Entry], path: Path) -> list[NDArray[np.uint8]]:
    """uint8 `[height, width]` of each grey image, `[height, width, 3]` of each other."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: images need Pillow, which is not here: pip install pillow") from (
            error
        )
    pixels: list[NDArray[np.uint8]] = []
    size: tuple[int, int] | None = None
    for entry in entries:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
                with entry.open() as stream, Image.open(stream) as image:
                    size = size or image.size
                    if image.size != size:
                        raise DataError(
                            f"{path}: {entry.path} is {image.size[0]}x{image.size[1]}, the first "
                            f"image {size[0]}x{size[1]}; scale all to one size"
                        )
                    mode = "L" if image.mode in _GREY_MODES else "RGB"
                    pixels.append(np.asarray(image.convert(mode)))
        except DataError:
            raise
        except (
            OSError,
            ValueError,
            SyntaxError,  # Pillow's word for a broken PNG
            Warning,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(f"{path}: {entry.path} cannot be decoded: {error}") from error
    return pixels


def _stack(pixels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8 `[n, channels, height, width]`; grey is repeated where others have colour."""
    channels = 1 if all(image.ndim == 2 for image in pixels) else 3
    stacked = np.empty((len(pixels), channels, *pixels[0].shape[:2]), dtype=np.uint8)
    for row, image in zip(stacked, pixels, strict=True):
        row[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return stacked
