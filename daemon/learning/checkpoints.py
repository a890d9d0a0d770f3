"""The checkpoint on disk, and copies of it: as it was when a version was proposed, when a good one.

    checkpoint.safetensors          replaced whole; what a learner that starts goes on from
    checkpoint.proposed-7.safetensors   as it was when version 7 was proposed, until that is decided
    checkpoint.good.safetensors     the same of the newest version that has passed its probation

A copy is a second name of the same file, which is never written to again; it has its name before
the version is proposed, so that a crash at any instant leaves each version with its own.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from daemon.durable import replace_file, sync_folder

log = logging.getLogger(__name__)

# Versions that are accepted before an earlier one is decided; an older one's copy goes.
_MOST_PROPOSED = 5


class Checkpoints:
    """The files.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._good = path.with_name(f"{path.stem}.good{path.suffix}")

    def read(self) -> bytes | None:
        """The checkpoint; None: there is none yet."""
        return _content(self._path)

    def write(self, content: bytes) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: It cannot be written; the old one is still there.
        """
        replace_file(self._path, content)

    def keep(self, version: int) -> None:
        """Remember the checkpoint that lies there as that of a version, which is proposed next.

        Raises:
            OSError: It cannot be kept.
        """
        self._name(self._path, self._proposed(version))
        for old in sorted(self._all_proposed())[:-_MOST_PROPOSED]:
            self.forget(old)

    def forget(self, version: int) -> None:
        """A version was refused."""
        self._proposed(version).unlink(missing_ok=True)

    def mark_good(self, version: int) -> None:
        """A version has passed: its checkpoint is what to go back to. Twice is harmless.

        Raises:
            OSError: It cannot be named so.
        """
        try:
            self._proposed(version).replace(self._good)
        except FileNotFoundError:  # marked already; or of a release that kept none
            return
        sync_folder(self._path.parent)
        for older in self._all_proposed():
            if older < version:
                self.forget(older)

    def read_good(self) -> bytes | None:
        """The checkpoint of the newest good version; None: none has been proposed yet."""
        return _content(self._good)

    def forget_proposed(self) -> None:
        """What was proposed and not decided is bad."""
        for version in self._all_proposed():
            self.forget(version)

    def _proposed(self, version: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.proposed-{version}{self._path.suffix}")

    def _all_proposed(self) -> list[int]:
        start, end = f"{self._path.stem}.proposed-", self._path.suffix
        names = (path.name for path in self._path.parent.glob(f"{start}*{end}"))
        numbers = [name.removeprefix(start).removesuffix(end) for name in names]
        return [int(number) for number in numbers if number.isdecimal()]

    def _name(self, file: Path, name: Path) -> None:
        temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(file, temporary)
        except OSError:  # a file system without second names
            shutil.copyfile(file, temporary)
            with temporary.open("rb") as copy:
                os.fsync(copy.fileno())
        temporary.replace(name)
        # A rename between two names of one file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)
        sync_folder(name.parent)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
