"""What a trial costs: memory, time, energy; and on what machine and which code.

**Memory.** The kernel keeps the high-water mark of a process's resident set (`VmHWM`); writing 5 to
`/proc/self/clear_refs` sets it back to the present size (Linux man-pages, proc_pid_clear_refs(5)).
Each trial runs in a fresh child process, so that methods share no allocator:

    1. load the data, rehearse a few steps and one judgement with a throw-away network, so that
       every library page is in; give freed memory back to the system; mark and read: the baseline
    2. build the real network; for each epoch: mark, train, read
    3. peak = highest reading - baseline

The figure counts weights, optimizer state, activations, gradients and temporaries; it leaves out
program, data set and judging. Pages that the C library keeps after a free count, as they do on a
device; that part moves by a tenth and more between runs, and methods with many short-lived buffers
pay more of it. With `MALLOC_MMAP_THRESHOLD_=65536` in the environment glibc keeps nothing: the
figure is then what was alive at once, and the times of that run mean nothing. The record's
`machine` lists such variables. The kernel's own count may lag by some hundred kilobytes on
many-core machines. Where the mark cannot be set back (not Linux, or a sandbox) the figure is None,
never zero.

**Energy.** RAPL package counters of `/sys/class/powercap`, the whole processor and not the process
alone; None where they are absent or unreadable, as they are for ordinary users on most systems.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

_RESET_HIGH_WATER = "5"
# Instructions that multiply INT8, x86's and arm's.
_INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")


class MemoryMeter:
    """High-water mark of this process's resident set.

    Args:
        process: Folder of the process, `/proc/self`.
    """

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._process = process

    def mark(self) -> bool:
        """Set the high-water mark back to the present size; False where that is not allowed."""
        release_free_memory()
        try:
            (self._process / "clear_refs").write_text(_RESET_HIGH_WATER)
        except OSError:
            return False
        return self.high_water_bytes() is not None

    def high_water_bytes(self) -> int | None:
        """Largest resident size in bytes since the last mark; None where unknown."""
        return _kilobyte_field(self._process / "status", "VmHWM:")


def release_free_memory() -> None:
    """Collect garbage and hand freed heap pages back to the system (glibc only)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


class EnergyMeter:
    """Energy of the processor packages while running, from RAPL.

    Args:
        root: The powercap folder.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        # Sub-domains (intel-rapl:0:0) are part of their package and would count twice, as would
        # intel-rapl-mmio, which is a second door to the same counter. AMD has the same names.
        self._packages = [
            domain
            for domain in sorted(root.glob("intel-rapl:*"))
            if (_text(domain / "name") or "").startswith("package")
        ]
        self._last: list[int] | None = None
        self._microjoules: int | None = 0 if self._packages else None

    def start(self) -> None:
        """Count from here on."""
        self._last = self._read()

    def poll(self) -> None:
        """Add what was used since the last look.

        A counter wraps after minutes to hours: call this at least once in that time.
        """
        now = self._read()
        if self._microjoules is None or self._last is None or now is None:
            self._microjoules = None
            return
        for package, before, after in zip(self._packages, self._last, now, strict=True):
            used = after - before
            if used < 0:
                highest = _number(package / "max_energy_range_uj")
                if highest is None:
                    self._microjoules = None
                    return
                used += highest + 1
            self._microjoules += used
        self._last = now

    @property
    def joules(self) -> float | None:
        """Energy counted between each `start` and the last `poll` after it; None where unknown."""
        return None if self._microjoules is None else self._microjoules * 1e-6

    def _read(self) -> list[int] | None:
        counters = [_number(package / "energy_uj") for package in self._packages]
        known = [counter for counter in counters if counter is not None]
        return known if known and len(known) == len(counters) else None


def machine(proc: Path = Path("/proc")) -> dict[str, Any]:
    """The machine and the versions that a figure belongs to; no name or address of it.

    Args:
        proc: Root of the process file system.

    Returns:
        `cpu`, `board` (None where the firmware names none), `cores`, `memory_bytes`, `system`,
        `python`, `torch`, `threads` (torch's, as set now), `int8` (what the processor has for INT8
        products), `malloc` and `onednn` (variables that steer the C library's allocator, and the
        library behind torch's products: which of those instructions it may use).
    """
    import torch

    cpu: dict[str, str] = {}  # of the first core
    for line in (_text(proc / "cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    board = _text(proc / "device-tree" / "model")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "board": board.strip("\0\n ") if board else None,
        "cores": os.cpu_count(),
        "memory_bytes": _kilobyte_field(proc / "meminfo", "MemTotal:"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "int8": [name for name in _INT8_FLAGS if name in flags],
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "onednn": {k: v for k, v in os.environ.items() if k.startswith("ONEDNN_")},
    }


def commit(folder: Path) -> str | None:
    """Commit of the checkout at `folder`, with `-dirty` where it holds anything more.

    Returns:
        Twelve hexadecimal digits, or None without git or a checkout.
    """
    git = shutil.which("git")
    if git is None:
        return None
    answers: list[str] = []
    for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"]):
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("-dirty" if answers[1] else "")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _kilobyte_field(path: Path, field: str) -> int | None:
    """Bytes of a line `field   <n> kB`."""
    for line in (_text(path) or "").splitlines():
        name, _, rest = line.partition(field)
        if not name and rest.strip().endswith("kB"):
            return int(rest.split()[0]) * 1024
    return None
