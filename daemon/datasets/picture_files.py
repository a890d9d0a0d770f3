"""Which pictures an ImageFolder holds, as a directory or as one zip, and what is passed over."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from daemon.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_NAMES_SHOWN = 10


class PictureFile(NamedTuple):
    """One picture: its path inside the folder or zip, and how to open its bytes."""

    path: PurePosixPath
    open: Callable[[], IO[bytes]]

    @property
    def name(self) -> str:
        """Its path; bytes that are no UTF-8 are escaped."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def named_in_utf8(self) -> bool:
        """Whether its path is text at all."""
        return os.fsencode(self.path).decode("utf-8", "replace") == str(self.path)

    @property
    def label(self) -> str:
        """Its class, composed (NFC): some file systems keep an accent apart from its letter."""
        return unicodedata.normalize("NFC", self.path.parts[0])

    @property
    def digest(self) -> bytes:
        """Of its path, composed likewise."""
        text = unicodedata.normalize("NFC", str(self.path))
        return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()


class PictureFiles(NamedTuple):
    """What a folder or zip holds.

    Args:
        pictures: In the order of their paths' digests: shuffled, and the same each time.
        notes: What was found and what was passed over, a line each.
    """

    pictures: list[PictureFile]
    notes: list[str]


@contextmanager
def pictures_in_folder(path: Path) -> Iterator[PictureFiles]:
    """The pictures of a directory: every first folder below it is a class.

    Raises:
        DataError: There are none, or some are in no class folder.
    """
    found, broken = [], 0
    for file in path.rglob("*"):
        if file.is_file():
            inside = PurePosixPath(file.relative_to(path).as_posix())
            found.append(PictureFile(inside, _opener(file)))
        elif file.is_symlink() and not file.exists():
            broken += 1
    yield _chosen(path, found, broken)


@contextmanager
def pictures_in_zip(path: Path) -> Iterator[PictureFiles]:
    """The pictures of a zip; a single folder around all class folders is stepped over.

    Raises:
        DataError: As with a directory.
        zipfile.BadZipFile: It is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = (info for info in archive.infolist() if not info.is_dir())
        found = [
            PictureFile(PurePosixPath(member.filename), _member_opener(archive, member))
            for member in members
        ]
        pictures = [file for file in found if _is_picture(file)]
        # Nobody can name a folder inside a zip, as one can in a directory.
        around = {file.path.parts[0] for file in pictures}
        if len(around) == 1 and all(len(file.path.parts) > 2 for file in pictures):
            found = [f._replace(path=PurePosixPath(*f.path.parts[1:])) for f in found]
        yield _chosen(path, found, broken=0)


def _chosen(path: Path, found: list[PictureFile], broken: int) -> PictureFiles:
    pictures = [file for file in found if _is_picture(file)]
    loose = sorted(file.name for file in pictures if len(file.path.parts) < 2)
    if not pictures or loose:
        found_what = f"{loose[0]!r} in no class folder" if loose else "no images"
        raise DataError(
            f"{path}: found {found_what}; wanted <class>/<name> with names ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    classes = sorted({file.label for file in pictures if file.named_in_utf8})
    if classes and {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"{path}: found the folders {', '.join(classes)}, which are splits, "
            "not classes; give one of them"
        )
    pictures.sort(key=lambda file: (file.digest, file.path))
    notes = [_classes_note(classes, pictures)]
    if skipped := _skipped_note(found, broken):
        notes.append(skipped)
    return PictureFiles(pictures, notes)


def _classes_note(classes: list[str], pictures: list[PictureFile]) -> str:
    shown = ", ".join(classes[:_NAMES_SHOWN])
    more = f" and {len(classes) - _NAMES_SHOWN} more" if len(classes) > _NAMES_SHOWN else ""
    plural = "class" if len(classes) == 1 else "classes"
    note = f"{len(classes)} {plural} found: {shown}{more}"
    if len(classes) == 1 and all(len(file.path.parts) > 2 for file in pictures):
        note += "; if the folders in it are the classes, give it itself"
    return note


def _skipped_note(found: list[PictureFile], broken: int) -> str:
    suffixes = Counter(
        file.path.suffix.lower() or "without a suffix"
        for file in found
        if not _is_picture(file) and not _is_hidden(file)
    )
    parts = []
    if suffixes:
        count, kinds = sum(suffixes.values()), suffixes.most_common(_NAMES_SHOWN)
        names = ", ".join(f"{n:,} {suffix}" for suffix, n in kinds)
        more = ", ..." if len(suffixes) > _NAMES_SHOWN else ""
        parts.append(f"{count:,} file{'s' * (count > 1)} skipped: {names}{more}")
    if broken:
        parts.append(f"{broken:,} broken link{'s' * (broken > 1)}")
    return "; ".join(parts).encode("utf-8", "backslashreplace").decode()


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _is_hidden(file: PictureFile) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in file.path.parts)


def _is_picture(file: PictureFile) -> bool:
    return not _is_hidden(file) and file.path.suffix.lower() in IMAGE_SUFFIXES
