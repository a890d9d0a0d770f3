"""A file system on a loop device, whose written bytes the kernel counts. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trial import TrialError

_BYTES = 4 << 30  # sparse: only what is written takes room
_SECTOR_BYTES = 512
_WRITTEN_SECTORS = 6  # of the fields of /sys/block/<device>/stat


@dataclass(frozen=True)
class LoopDevice:
    """A mounted loop device.

    Args:
        name: Of its block device, without folder.
        mounted: Where.
    """

    name: str
    mounted: Path

    def written_bytes(self) -> int:
        """Bytes that were written to it so far."""
        stat = Path("/sys/block", self.name, "stat").read_text().split()
        return int(stat[_WRITTEN_SECTORS]) * _SECTOR_BYTES

    def sync(self) -> None:
        """Have everything written that waits in memory."""
        _run("sync", "-f", str(self.mounted))


@contextmanager
def loop_device(folder: Path) -> Iterator[LoopDevice]:
    """ext4 in a file in `folder`, mounted there.

    Raises:
        TrialError: This is not root, or a tool is missing or fails.
    """
    tools = [tool for tool in ("losetup", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if os.geteuid() != 0 or tools:
        raise TrialError(
            f"part wear mounts a loop device: it needs root{' and '.join(['', *tools])}; leave it "
            "out of --parts"
        )
    image, mounted = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(_BYTES)
    mounted.mkdir()
    # Without lazy initialisation, which would go on writing while we count.
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        _run("mount", device, str(mounted))
        try:
            yield LoopDevice(Path(device).name, mounted)
        finally:
            _run("umount", str(mounted))
    finally:
        _run("losetup", "--detach", device)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise TrialError(f"{command[0]} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
