"""Checks of the host: Python and its packages, the disk that keeps samples, SQLite, the clock."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from daemon.doctor_board import installed_version
from daemon.errors import StoreError
from daemon.store.connections import has_wal_reset_bug, open_writer
from daemon.store.schema import DATABASE_NAME
from engines import Finding

_GIB = 1 << 30
_SYNCS = 50
_SLOW_SYNC_SECONDS = 0.02
# Seconds since the epoch, 2026-01-01: before that no version of this program existed.
_EARLIEST = 1_767_225_600
_PACKAGES = (
    "numpy",
    "torch",
    "tensorrt",
    "pycuda",
    "jetson-stats",
    "onnx",
    "safetensors",
    "uvicorn",
)
_AS_THE_SERVICE = "run it as the service's user: sudo -u ffedge ffedge doctor"
_REMEDIES = {
    errno.EACCES: _AS_THE_SERVICE,
    errno.EPERM: _AS_THE_SERVICE,
    errno.ENOSPC: "free some space: no sample can be kept",
    errno.EROFS: "mount it for writing, or set store.directory",
}
# adjtimex(2): the state of a clock that nothing sets.
_TIME_ERROR = 5


def check_host(directory: Path | None) -> list[Finding]:
    """All of them.

    Args:
        directory: The store's; None: the configuration does not say.
    """
    findings = [
        _python(),
        _packages(),
        numpy_pair(installed_version),
        _sqlite_version(sqlite3.sqlite_version),
    ]
    if directory is None:
        findings.append(Finding("state directory", "SKIP", "the configuration does not name it"))
    elif not directory.is_dir():
        findings.append(_missing(directory))
    else:
        findings += _state(directory)
    return [*findings, clock(time.time(), _clock_state())]


def _missing(directory: Path) -> Finding:
    """Whether the first start can make the directory."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir():
        found = f"{nearest} is no folder (wanted: a folder for store.directory)"
        return Finding("state directory", "FAIL", found)
    if not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{directory} does not exist, and {nearest} may not be written to by this user"
        return Finding("state directory", "FAIL", found)
    found = f"{directory} does not exist: the first start makes it"
    return Finding("state directory", "SKIP", found)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", "FAIL", f"{found} (wanted: 3.10 to 3.13)")
    return Finding("Python", "PASS", f"{found}, {sys.executable}")


def _packages() -> Finding:
    versions = [(name, installed_version(name)) for name in _PACKAGES]
    return Finding("packages", "PASS", ", ".join(f"{name} {v or '-'}" for name, v in versions))


def numpy_pair(version: Callable[[str], str | None]) -> Finding:
    """TensorRT 10.3's bindings give an array of numpy 2 back as many times its first element."""
    name, tensorrt, numpy = "numpy with TensorRT", version("tensorrt"), version("numpy")
    if tensorrt is None or numpy is None:
        return Finding(name, "SKIP", "no TensorRT for this Python")
    found = f"TensorRT {tensorrt} with numpy {numpy}"
    if _numbers(tensorrt) < (10, 16) and _numbers(numpy) >= (2,):
        return Finding(name, "FAIL", f"{found} (before 10.16 wanted: pip install 'numpy<2')")
    return Finding(name, "PASS", found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _sqlite_version(version: str) -> Finding:
    """Versions with the fault that several writers at once can meet; there is one writer here."""
    if not has_wal_reset_bug(_numbers(version)):
        return Finding("SQLite", "PASS", version)
    note = "its WAL-reset fault needs two writers; here one connection alone writes"
    return Finding("SQLite", "PASS", f"{version} ({note}: let no other program write to the store)")


def _state(directory: Path) -> list[Finding]:
    free = shutil.disk_usage(directory).free
    space = f"{free / _GIB:.1f} GiB free at {directory}"
    low = f"{space} (wanted: 1 GiB; on a full disk samples are refused)"
    findings = [
        Finding("free space", "WARN", low) if free < _GIB else Finding("free space", "PASS", space)
    ]
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as folder:
            findings += [_sync(Path(folder)), _durability(Path(folder))]
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "samples cannot be kept there")
        found = f"cannot write to {directory}: {error.strerror} ({remedy})"
        findings.append(Finding("state directory", "FAIL", found))
    return findings


def _sync(folder: Path) -> Finding:
    """What an acknowledged group of samples waits for."""
    seconds = []
    descriptor = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(_SYNCS):
            os.write(descriptor, bytes(4096))
            started = time.perf_counter()
            os.fdatasync(descriptor)
            seconds.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
    middle, worst = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
    found = f"fdatasync of 4 KiB: p50 {middle * 1e3:.2f} ms, p99 {worst * 1e3:.2f} ms"
    if middle > _SLOW_SYNC_SECONDS:
        return Finding("disk", "WARN", f"{found} (wanted: 20 ms at most; is it an SD card?)")
    return Finding("disk", "PASS", found)


def _durability(folder: Path) -> Finding:
    """The store's own settings on this file system, read back."""
    try:
        with closing(open_writer(folder / DATABASE_NAME)):
            pass
    except (StoreError, sqlite3.Error) as error:
        return Finding("durability", "FAIL", str(error))
    return Finding("durability", "PASS", "SQLite keeps WAL and synchronous=FULL here")


def clock(now: float, state: int | None) -> Finding:
    """Samples' order does not depend on it; their stamps, and the log's, do.

    Args:
        now: Seconds since the epoch.
        state: What adjtimex(2) answers; None: not known here.
    """
    if now < _EARLIEST:
        found = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}"
        return Finding("clock", "FAIL", f"{found} (set it: timedatectl; a battery keeps it)")
    if state is None:
        return Finding("clock", "SKIP", "whether it is synchronised cannot be asked here")
    if state == _TIME_ERROR:
        found = "not synchronised (timedatectl set-ntp true; stamps may be wrong, order is not)"
        return Finding("clock", "WARN", found)
    return Finding("clock", "PASS", "synchronised")


def _clock_state() -> int | None:
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # no mode: only asks
    except (OSError, AttributeError):
        return None
    return None if state < 0 else int(state)
