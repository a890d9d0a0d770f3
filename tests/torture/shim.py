"""Builds `shim.c` where a C compiler is, and steers it while the process under test runs."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

NOTHING, LOSE, FAIL_FROM, KILL, TEAR = range(5)
ACTIONS = {"fail once": LOSE, "fail from there on": FAIL_FROM, "kill": KILL, "tear": TEAR}
_FIELDS = (
    "action",
    "error",
    "at",
    "calls",
    "struck",
    "clock_offset_seconds",
    "sync_delay_microseconds",
    "recording",
)
_PREFIX_BYTES = 512
_KINDS = 4096
_SIZE = 8 * len(_FIELDS) + _PREFIX_BYTES + _KINDS


def missing() -> str | None:
    """Why the shim cannot be built here, or None."""
    return None if shutil.which("cc") else "no C compiler (cc) for the preloaded shim"


class Shim:
    """One shim and its control block.

    Args:
        folder: For the library and the control block.
    """

    def __init__(self, folder: Path) -> None:
        library, control, self.trace = (
            folder / name for name in ("shim.so", "shim.control", "shim.trace")
        )
        self.trace.touch()
        source = Path(__file__).with_suffix(".c")
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"],
            check=True,
        )
        control.write_bytes(bytes(_SIZE))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.environment = {
            "LD_PRELOAD": str(library),
            "TORTURE_SHIM": str(control),
            "TORTURE_TRACE": str(self.trace),
        }

    def watch(self, folder: Path) -> None:
        """Count the calls on files below `folder`, from 0."""
        prefix = os.fsencode(folder)
        assert len(prefix) < _PREFIX_BYTES
        self._set(calls=0, struck=0)
        start = 8 * len(_FIELDS)
        self._map[start : start + _PREFIX_BYTES] = prefix.ljust(_PREFIX_BYTES, b"\0")

    def arm(self, action: int, at: int, error: int = errno.EIO) -> None:
        """Have call number `at` from now on, or all from it on, end as `action` says."""
        self._set(at=self.calls + at, error=error)
        self._set(action=action)

    def disarm(self) -> None:
        self._set(action=NOTHING)

    def shift_clock(self, seconds: int) -> None:
        """What the wall clock is to be ahead of the true one."""
        self._set(clock_offset_seconds=seconds)

    def record(self, *, on: bool) -> None:
        """Begin the trace of all that is done to watched files, or end it."""
        if on:
            os.truncate(self.trace, 0)
        self._set(recording=on)

    def delay_syncs(self, seconds: float) -> None:
        """Have each sync of a watched file take so much longer."""
        self._set(sync_delay_microseconds=int(seconds * 1e6))

    @property
    def calls(self) -> int:
        """Calls counted."""
        return self._get("calls")

    def calls_of(self, kind: str) -> list[int]:
        """Numbers of the calls of a kind: S sync, T truncate, W write, R rename."""
        kinds = self._map[_SIZE - _KINDS :][: self.calls + 1]
        return [number for number, found in enumerate(kinds) if found == ord(kind)]

    @property
    def struck(self) -> int:
        """Calls that did not end as they should."""
        return self._get("struck")

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            struct.pack_into("<q", self._map, 8 * _FIELDS.index(name), value)

    def _get(self, name: str) -> int:
        return struct.unpack_from("<q", self._map, 8 * _FIELDS.index(name))[0]
