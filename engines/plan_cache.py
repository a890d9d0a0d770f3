"""What took minutes to build, kept on disk: plans and timing caches, each under its whole key.

A plan is good for one TensorRT version on one device, so both are in the key. An entry is a tensor
file, which carries a digest; one that is damaged or of another key is as good as none. Nothing here
is worth a failure: what cannot be read is built again, what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engines.tensor_file import TensorFileError, pack, unpack

log = logging.getLogger(__name__)

ENTRIES_MAX = 8
_SUFFIX = ".cache"


class Entry(NamedTuple):
    """What is kept under a key.

    Args:
        content: Bytes.
        notes: JSON values beside them.
    """

    content: bytes
    notes: dict[str, Any]


class PlanCache:
    """A folder of entries, the newest `ENTRIES_MAX` of them.

    Args:
        folder: Made when something is kept; None: nothing is.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load(self, key: Mapping[str, str]) -> Entry | None:
        """The entry, or None where there is none that is whole."""
        path = self._path(key)
        if path is None:
            return None
        try:
            arrays, fields = unpack(path.read_bytes())
            if fields["key"] != dict(key):
                raise TensorFileError("it is of another key")
            with contextlib.suppress(OSError):
                os.utime(path)  # in use: not one of the oldest
            return Entry(arrays["content"].tobytes(), fields["notes"])
        except FileNotFoundError:
            return None
        except (OSError, TensorFileError, KeyError) as error:
            log.warning("engine cache entry is not used", extra={"path": path, "why": str(error)})
            return None

    def save(self, key: Mapping[str, str], entry: Entry) -> None:
        """Keep an entry in the place of its older self, and let the oldest of many go."""
        path = self._path(key)
        if path is None:
            return
        content = np.frombuffer(entry.content, dtype=np.uint8)
        packed = pack({"content": content}, {"key": dict(key), "notes": entry.notes})
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(packed)
            temporary.replace(path)  # a power cut may leave less than was meant: see the digest
            self._prune(path.parent)
        except OSError as error:
            log.warning("engine cache entry is not kept", extra={"path": path, "why": str(error)})

    def _path(self, key: Mapping[str, str]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:32]}{_SUFFIX}"

    @staticmethod
    def _prune(folder: Path) -> None:
        for leftover in folder.glob(f".*{_SUFFIX}.*.tmp"):
            leftover.unlink(missing_ok=True)
        newest_first = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda p: -p.stat().st_mtime_ns)
        for path in newest_first[ENTRIES_MAX:]:
            path.unlink(missing_ok=True)
