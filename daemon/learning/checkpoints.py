"""The checkpoint on disk, and copies of it: as it was when a version was proposed, when a good one.

    checkpoint.safetensors              replaced whole; what a learner that starts goes on from
    checkpoint.proposed-7.safetensors   as it was when version 7 was proposed, until that is decided
    checkpoint.good-5.safetensors       the same of version 5, which has passed its probation

A copy is a second name of the same file, which is never written to again; it has its name before
the version is proposed, so that a crash at any instant leaves each version with its own.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from daemon.durable import replace_file, sync_folder

log = logging.getLogger(__name__)

# Copies of versions that nobody tries any more and nobody has found bad; an older one's goes.
_MOST_PROPOSED = 5
# Good versions with a copy, the newest ones: each may be several times as large as the weights.
MOST_GOOD = 3


class Checkpoints:
    """The files.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_trial: set[int] = set()  # versions that may pass yet: their copies stay
        # Told what is done next, and with how many bytes: that may take long.
        self.before: Callable[[str, int], None] = _nobody
        self.wrote: Callable[[int], None] = _uncounted  # told how many bytes were

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._path.parent

    def read(self) -> bytes | None:
        """The checkpoint; None: there is none yet."""
        return self._content(self._path)

    def write(self, content: bytes) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: It cannot be written; the old one is still there.
        """
        self.before("the checkpoint is written", len(content))
        replace_file(self._path, content)
        self.wrote(len(content))

    def keep(self, version: int) -> None:
        """Remember the checkpoint that lies there as that of a version, which is proposed next.

        Raises:
            OSError: It cannot be kept.
        """
        self._name(self._path, self._proposed(version))
        untried = set(self._all("proposed")) - self.on_trial - {version}
        for old in sorted(untried)[:-_MOST_PROPOSED]:
            self.forget(old)

    def forget(self, version: int) -> None:
        """A version was refused."""
        self._proposed(version).unlink(missing_ok=True)

    def mark_good(self, version: int) -> bool:
        """A version has passed: its checkpoint is one to go back to. Twice is harmless.

        Returns:
            Whether there is a copy of it.

        Raises:
            OSError: It cannot be named so.
        """
        try:
            self._proposed(version).replace(self._good(version))
        except FileNotFoundError:
            return self._good(version).exists()
        sync_folder(self._path.parent)
        for old in self.good()[MOST_GOOD:]:
            self._good(old).unlink(missing_ok=True)
        return True

    def settle(self, good: Collection[int]) -> None:
        """Of the good ones keep those alone that are still good.

        Args:
            good: All versions that are; what passed while nobody listened is among them.

        Raises:
            OSError: A copy cannot be renamed or removed.
        """
        for version in set(self.good()) - {*good}:
            self._good(version).unlink(missing_ok=True)
        for version in sorted(good):
            self.mark_good(version)

    def good(self) -> list[int]:
        """Good versions with a copy, the newest first."""
        return sorted(self._all("good"), reverse=True)

    def read_good(self, version: int) -> bytes | None:
        """The checkpoint of a good version; None: it is gone."""
        return self._content(self._good(version))

    def forget_proposed(self, but: int) -> None:
        """What was proposed and not decided is bad, or no longer tried.

        Args:
            but: The version that serves.
        """
        for version in self._all("proposed"):
            if version != but:
                self.forget(version)

    def _proposed(self, version: int) -> Path:
        return self._copy(f"proposed-{version}")

    def _good(self, version: int) -> Path:
        return self._copy(f"good-{version}")

    def _copy(self, what: str) -> Path:
        return self._path.with_name(f"{self._path.stem}.{what}{self._path.suffix}")

    def _all(self, state: str) -> list[int]:
        start, end = f"{self._path.stem}.{state}-", self._path.suffix
        names = (path.name for path in self._path.parent.glob(f"{start}*{end}"))
        numbers = [name.removeprefix(start).removesuffix(end) for name in names]
        return [int(number) for number in numbers if number.isdecimal()]

    def _content(self, path: Path) -> bytes | None:
        try:
            self.before("a checkpoint is read", path.stat().st_size)
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _name(self, file: Path, name: Path) -> None:
        temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(file, temporary)
        except OSError:  # a file system without second names
            size = file.stat().st_size
            self.before("the checkpoint is copied", size)
            shutil.copyfile(file, temporary)
            with temporary.open("rb") as copy:
                os.fsync(copy.fileno())
            self.wrote(size)
        temporary.replace(name)
        # A rename between two names of one file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)
        sync_folder(name.parent)


def _nobody(what: str, size: int) -> None:
    """Nobody waits for us."""


def _uncounted(size: int) -> None:
    """Nobody counts it."""
