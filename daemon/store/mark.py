"""The high-water mark: the highest sequence number ever acknowledged, kept apart from the database.

One flipped bit in the write-ahead log silently drops every transaction behind it, and the database
then opens as if they had never been. Only something outside it can tell. So the writer puts the
newest `seq` here after each commit, and before anybody is told of it: a database that opens below
its mark has lost what it acknowledged.

The file has two slots, in blocks of their own, written in turn and each with a checksum: a write
that is torn spoils one of them, and the other is one commit behind.
"""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from pathlib import Path

from daemon.durable import sync_folder

log = logging.getLogger(__name__)

MARK_NAME = "ffedge.mark"
_SLOT_BYTES = 4096
_SLOTS = 2
_FIELDS = struct.Struct("<8sQ")
_CRC = struct.Struct("<I")
_MAGIC = b"ffmark1\n"
_SYNC_SECONDS = 1.0


def read_mark(path: Path) -> int:
    """The highest `seq` that was acknowledged; 0 where there is no file, or only garbage in it.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    slots = [content[i * _SLOT_BYTES :][: _FIELDS.size + _CRC.size] for i in range(_SLOTS)]
    marks = [seq for slot in slots if (seq := _unpack(slot)) is not None]
    if not marks:
        log.error("mark is garbled: earlier losses go unseen", extra={"file": str(path)})
    return max(marks, default=0)


class MarkFile:
    """The file, open for the one writer; its blocks are there, so no full disk stops a write.

    Args:
        path: Made if missing.
        seq: What it begins with.

    Raises:
        OSError: It cannot be made or written.
    """

    def __init__(self, path: Path, seq: int) -> None:
        new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(self._descriptor, 0, _SLOTS * _SLOT_BYTES)
            self._next, self._synced = 0, 0.0
            for _ in range(_SLOTS):
                self.write(seq)
                self.sync()
            if new:
                sync_folder(path.parent)
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, seq: int) -> None:
        """Put a newer mark down: outlives this process at once, and a power cut after a second.

        Raises:
            OSError: It was not written, or may not be on disk.
        """
        fields = _FIELDS.pack(_MAGIC, seq)
        slot = fields + _CRC.pack(zlib.crc32(fields))
        os.pwrite(self._descriptor, slot, self._next * _SLOT_BYTES)
        self._next = (self._next + 1) % _SLOTS
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring it to disk.

        Raises:
            OSError: It may not be there.
        """
        self._synced = time.monotonic()
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Sync and close it.

        Raises:
            OSError: It may not be on disk; it is closed all the same.
        """
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def _unpack(slot: bytes) -> int | None:
    fields, crc = slot[: _FIELDS.size], slot[_FIELDS.size :]
    if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(fields):
        return None
    magic, seq = _FIELDS.unpack(fields)
    return int(seq) if magic == _MAGIC else None
