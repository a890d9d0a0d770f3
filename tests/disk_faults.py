"""Small real file systems that fail, where the tests may mount them."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@functools.cache
def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            return f"cannot mount here: {mounted.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return None


def needs_mounts() -> None:
    """Skip the test where nothing may be mounted."""
    if (why := _why_not()) is not None:
        pytest.skip(why)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of a size."""
    needs_mounts()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Somebody else's file takes the room, all but a little."""
    path = folder / "filler"
    found = os.statvfs(folder)
    with path.open("ab") as file:
        left = found.f_bavail * found.f_frsize - leave_bytes
        os.posix_fallocate(file.fileno(), file.tell(), max(4096, left))
    return path
