"""A control group with a memory limit, in which the kernel kills whoever is first in line."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import wait_for

_ROOT = Path("/sys/fs/cgroup")
_LIMITS = {  # by version of control groups; without swap, where the kernel counts it
    2: ("memory.max", "memory.swap.max"),
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
}


def _parent() -> tuple[int, Path] | None:
    """Version, and where a group for memory can be made."""
    enabled = _ROOT / "cgroup.subtree_control"
    if enabled.exists() and "memory" in enabled.read_text().split():
        return 2, _ROOT
    memory = _ROOT / "memory"
    return (1, memory) if (memory / "memory.limit_in_bytes").exists() else None


def missing() -> str | None:
    """Why no process can be killed for memory here; None: one can."""
    parent = _parent()
    if parent is None:
        return "needs control groups for memory"
    if os.geteuid() != 0 or not os.access(parent[1], os.W_OK):
        return "needs root, to make a control group"
    return None


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A group of that limit; `within` starts a program in it.

    Args:
        limit_bytes: Of memory, for all processes in it.
    """
    parent = _parent()
    assert parent is not None
    version, folder = parent
    group = folder / f"ffedge-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    try:
        most, swap = _LIMITS[version]
        (group / most).write_text(str(limit_bytes))
        if (group / swap).exists():
            (group / swap).write_text("0" if version == 2 else str(limit_bytes))
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "its processes to end")
        group.rmdir()


def within(group: Path) -> list[str]:
    """The beginning of a command line whose rest runs in the group, as do its children."""
    return ["sh", "-c", 'echo $$ >"$0"/cgroup.procs && exec "$@"', str(group)]
