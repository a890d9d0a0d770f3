"""File systems that can be cut off, filled and made read-only: loop-mounted, or in memory.

Needs root, loop devices and mkfs; `missing` says what hinders.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# _IOR('X', 125, u32), the same on ext4 and xfs; flag 2: flush neither the journal nor data.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_MEBIBYTES = {"ext4": 64, "xfs": 320}
_MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


@functools.cache
def missing(kind: str = "tmpfs") -> str | None:
    """Why no file system of this kind can be mounted here, found out by trying, or None."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if kind in _MKFS and shutil.which(_MKFS[kind][0]) is None:
        return f"{_MKFS[kind][0]} is not installed"
    try:
        with tempfile.TemporaryDirectory() as folder, mounted(kind, Path(folder)):
            return None
    except subprocess.CalledProcessError as error:
        return f"cannot mount {kind} here: {error.stderr.decode().strip()}"
    except OSError as error:
        return f"cannot mount {kind} here: {error}"


def cut_power(folder: Path) -> None:
    """Lose all that the file system below `folder` has not made durable; it is dead afterwards."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def fill(folder: Path) -> Path:
    """Somebody else's file takes all the room there is, also what becomes free meanwhile."""
    path = folder / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)
    return path


class Disk:
    """A mounted file system.

    Args:
        point: Where it is mounted.
        source: What is mounted: the image, or `tmpfs`.
        options: Of mount.
    """

    def __init__(self, point: Path, source: str, *options: str) -> None:
        self.point, self._source, self._options = point, source, options
        point.mkdir(exist_ok=True)
        self._mount()

    def replug(self) -> None:
        """Unmount and mount, as after a power cut."""
        self.unmount()
        self._mount()

    def remount(self, options: str) -> None:
        """Change options in place: `ro`, `rw`, `size=...`."""
        _run("mount", "-o", f"remount,{options}", str(self.point))

    def unmount(self) -> None:
        """Unmount; a process that is dying may keep it busy for a moment."""
        for _ in range(200):
            done = subprocess.run(["umount", str(self.point)], capture_output=True, check=False)
            if done.returncode == 0:
                return
            time.sleep(0.01)
        raise OSError(f"{self.point} is still in use: {done.stderr.decode()}")

    def _mount(self) -> None:
        _run("mount", *self._options, self._source, str(self.point))


@contextmanager
def mounted(kind: str, folder: Path, mebibytes: int | None = None) -> Iterator[Disk]:
    """A fresh file system of this kind, with its image, if any, in `folder`."""
    point = folder / "disk"
    if kind == "tmpfs":
        disk = Disk(point, "tmpfs", "-t", "tmpfs", "-o", f"size={mebibytes or 64}m")
    else:
        image = folder / f"{kind}.img"
        with image.open("wb") as file:
            file.truncate((mebibytes or _MEBIBYTES[kind]) << 20)
        _run(*_MKFS[kind], str(image))
        disk = Disk(point, str(image), "-o", "loop")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(point)], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
