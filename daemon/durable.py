"""Replace a file so that a crash at any instant leaves the old content or the new, never a mix."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by one with this content; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a temporary file beside `path`, sync it, rename it over `path`, sync the folder.

    Without the first sync the rename can reach the disk before the content; without the second the
    old name can come back after a power cut. Left by an exception, `path` stays as it was.

    Raises:
        OSError: A step failed. `path` still has its old content, unless the very last sync failed:
            then it has the new, and a power cut may bring back the old.
    """
    # By thread: two that save at once each leave a whole file, the later one's last.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed in the middle."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # they cost space, nothing else
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
