"""Whether the store can be written to, why not, and when it is worth trying again.

    open ── a write fails for a cause that may pass ──► unavailable(cause) ── opened anew ──► open

SQLite names the failure, not always its cause: on a full or read-only file system it may as well
say "disk I/O error" or "unable to open database file". Where it is ambiguous the file system is
asked, by writing a small file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.store.ballast import free_bytes

Cause = Literal["full", "read_only", "io_error", "damaged", "in_use", "quota"]

CAUSES: dict[Cause, str] = {
    "full": "the disk is full: make room",
    "read_only": "the file system is read-only: make it writable",
    "io_error": "the disk does not write: see the kernel's log",
    "damaged": "the database is damaged: move it away, or bring back a copy of it",
    "in_use": "another program holds ffedge.sqlite in a transaction: end it, or wait for it",
    "quota": "store.max_bytes is nearly reached: raise it, or wait until old samples have gone, "
    'unless store.when_full is "refuse"',
}

LOG_IN_USE = "a reader keeps the log from being emptied"

# SQLite's own words (Python 3.10 has no error codes), and what they say for sure.
_SAID: dict[str, Cause | None] = {
    "database or disk is full": "full",
    "database disk image is malformed": "damaged",
    "database is locked": "in_use",
    LOG_IN_USE: "in_use",
    "attempt to write a readonly database": None,
    "disk I/O error": None,
    "unable to open database file": None,
}
# What only damage makes of a database that was in order when it was opened.
_DAMAGE = (
    "no such table",
    "no such column",
    "no such row",
    "file is not a database",
    "malformed database schema",
)
_ERRNO: dict[int | None, Cause] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read_only",
    errno.EIO: "io_error",
    errno.EUCLEAN: "io_error",  # ext4 and xfs: the file system is damaged
}
_FIRST_BACKOFF_SECONDS = 1.0
_LAST_BACKOFF_SECONDS = 30.0
# Less than this is not room: the log of one group would fill it again.
_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Unavailable:
    """Why the store takes nothing.

    Args:
        cause: Of `CAUSES`.
        error: What failed, as the system says it: for the log.
    """

    cause: Cause
    error: str

    @property
    def why(self) -> str:
        """One sentence for a client: the cause, and what to do."""
        return CAUSES[self.cause]


def unavailable_after(error: BaseException, directory: Path) -> Unavailable | None:
    """What an error says of the store; None: nothing that waiting could mend.

    Args:
        error: Of SQLite or of the system.
        directory: The store's.
    """
    cause: Cause | None = None
    if isinstance(error, OSError):
        cause = _ERRNO.get(error.errno)
    elif isinstance(error, sqlite3.DatabaseError) and str(error) in _SAID:
        cause = _SAID[str(error)] or _ask(directory)
    return None if cause is None else Unavailable(cause, f"{type(error).__name__}: {error}")


def damaged_after(error: BaseException) -> Unavailable | None:
    """What an error says of a database that was in order when it was opened; None: nothing.

    Args:
        error: Of SQLite.
    """
    found = isinstance(error, sqlite3.DatabaseError) and str(error).startswith(_DAMAGE)
    return damaged(error) if found else None


def damaged(error: BaseException) -> Unavailable:
    """Whatever the error, it does not pass: the database is not to be trusted."""
    return Unavailable("damaged", f"{type(error).__name__}: {error}")


def _ask(directory: Path) -> Cause | None:
    """Why a small file cannot be written; an I/O error where it can, since SQLite's could not."""
    path = directory / f".room.{os.getpid()}.tmp"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return _ERRNO.get(error.errno)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return "io_error"


class Backoff:
    """When to try again: after 1 s, 2 s, 4 s, ... 30 s, or as soon as it can be seen to be mended.

    Args:
        directory: The store's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.reset()

    def reset(self) -> None:
        """Something was written: the next failure is a first one."""
        self._pause = _FIRST_BACKOFF_SECONDS
        self._next = 0.0
        self._free = 0

    def failed(self) -> None:
        """It could not be written or opened just now."""
        self._next = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LAST_BACKOFF_SECONDS)
        with contextlib.suppress(OSError):
            self._free = free_bytes(self._directory)

    def due(self, cause: Cause) -> bool:
        """Whether to try now.

        Args:
            cause: Of the last failure.
        """
        return time.monotonic() >= self._next or self._mended(cause)

    def _mended(self, cause: Cause) -> bool:
        try:
            if cause == "full":
                return free_bytes(self._directory) >= self._free + _ROOM_BYTES
            if cause == "read_only":
                return not os.statvfs(self._directory).f_flag & os.ST_RDONLY
        except OSError:
            return False
        return False
