"""The ballast: a file of nothing, given up first when the disk is full.

On a full disk even DELETE fails, since its pages go through the write-ahead log. The space of this
file is what retention then works in.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

BALLAST_NAME = "ffedge.ballast"
BALLAST_BYTES = 8 << 20
_BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system's own are


def free_bytes(directory: Path) -> int:
    """What an ordinary user may still write on the file system of `directory`.

    Raises:
        OSError: It does not answer.
    """
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Ballast:
    """The file.

    Args:
        directory: Where it lies, on the file system that it keeps room on.
        size_bytes: Its size.
    """

    def __init__(self, directory: Path, size_bytes: int = BALLAST_BYTES) -> None:
        self._directory = directory
        self._path = directory / BALLAST_NAME
        self._size_bytes = size_bytes

    @property
    def there(self) -> bool:
        """Whether it takes up all of its room."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        allocated = found.st_blocks * _BLOCK_BYTES
        return min(found.st_size, allocated) >= self._size_bytes

    def make(self) -> bool:
        """Take up the room, where as much again stays free.

        Returns:
            Whether it is there now.
        """
        if self.there:
            return True
        try:
            if free_bytes(self._directory) < 2 * self._size_bytes:
                return False
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("ballast cannot be made", extra={"why": str(error)})
            self.drop()
            return False
        return self.there

    def drop(self) -> bool:
        """Give the room up.

        Returns:
            Whether there was any.
        """
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
