"""One daemon per directory: two writers would each believe that they alone number the samples.

The directory itself is locked, and never a file in it: a daemon that started on a read-only disk,
where no file could be made, and one that starts when it can be written, exclude each other.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from daemon.errors import StoreError


def lock_directory(directory: Path, *, wait: bool) -> int:
    """Hold a lock on a directory until this process ends, however it ends.

    Args:
        directory: Made if missing.
        wait: Wait for another holder to end, instead of refusing: a new learner does, for one that
            a killed server left behind.

    Returns:
        The descriptor that holds the lock; closing it gives the lock up.

    Raises:
        StoreError: Another process holds it, or the directory cannot be made or locked.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(
            f"cannot use {directory} ({error.strerror}): choose another store.directory"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise StoreError(
                f"another daemon works in {directory}: stop it, or choose another store.directory"
            ) from error
        raise StoreError(
            f"cannot lock {directory} ({error.strerror}): choose a store.directory on a local disk"
        ) from error
    return descriptor
