"""One daemon per directory: two writers would each believe that they alone number the samples."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from daemon.errors import StoreError

# Faults that may pass, and that must not keep what can be read from being served.
_DISK_FAULTS = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}


def lock_directory(directory: Path, name: str, *, wait: bool) -> int:
    """Hold a lock file until this process ends, however it ends.

    Args:
        directory: Made if missing.
        name: `server` or `learner`; a new learner waits for one that a killed server left behind.
        wait: Wait for another holder to end, instead of refusing.

    Returns:
        The descriptor that holds the lock; closing it gives the lock up.

    Raises:
        StoreError: Another process holds it, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _open(directory, directory / f"{name}.lock")
    except OSError as error:
        raise StoreError(
            f"cannot write to {directory} ({error.strerror}): choose another store.directory"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(
            f"another daemon works in {directory}: stop it, or choose another store.directory"
        ) from error
    return descriptor


def _open(directory: Path, path: Path) -> int:
    """The lock file; where the disk does not let it be made, the directory, which locks as well."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
    return os.open(path if path.exists() else directory, os.O_RDONLY | os.O_CLOEXEC)
