"""Why a learner ended: read from its exit status, from who killed it, and from the kernel's count.

    its own exit status   settings (78), storage (74), out of memory (71); any other: a crash
    SIGSEGV and the like  a crash; `kill -SEGV` from outside cannot be told from one
    SIGKILL by us         it had hung, what it said could not be understood, or it was to give its
                          memory back (memory)
    SIGKILL else          oom where the kernel has counted an out-of-memory kill in the learner's
                          control group since it was started, else killed: by whom, nobody says
    other signals         killed

Where the kernel shows no such count (no memory control group) its kills look like anybody's. Had it
taken the power reader, and somebody then the learner, that would count as oom, too.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

from daemon.messages import MISCONFIGURED, OUT_OF_MEMORY, STORAGE

Reason = Literal["crash", "killed", "oom", "hang", "memory", "storage", "settings"]
REASONS: tuple[Reason, ...] = (
    "crash",
    "killed",
    "oom",
    "hang",
    "memory",
    "storage",
    "settings",
)

_OWN: dict[int, Reason] = {
    MISCONFIGURED: "settings",
    STORAGE: "storage",
    OUT_OF_MEMORY: "oom",
}
_FAULTS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}


def reason_of(code: int | None, ours: Reason | None, *, memory_ran_out: bool) -> Reason:
    """Why it ended.

    Args:
        code: Exit status, negative for a signal; None: it could not be started.
        ours: Why we killed it; None: we did not.
        memory_ran_out: Whether the kernel has killed for memory since it was started.
    """
    if ours is not None and code == -signal.SIGKILL:
        return ours
    if code is None or code >= 0:
        return _OWN.get(code or 0, "crash")
    if code == -signal.SIGKILL:
        return "oom" if memory_ran_out else "killed"
    return "crash" if -code in _FAULTS else "killed"


class OutOfMemoryKills:
    """The kernel's count of processes it has killed for memory in our control group.

    Args:
        control_groups: Says in which groups we are, one a line, as /proc/self/cgroup.
        root: Where control groups are mounted.
    """

    def __init__(
        self,
        control_groups: Path = Path("/proc/self/cgroup"),
        root: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._control_groups, self._root = control_groups, root

    def count(self) -> int | None:
        """None: it is not told."""
        for path in self._counters():
            try:
                lines = path.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, value = line.partition(" ")
                if name == "oom_kill" and value.isdigit():
                    return int(value)
        return None

    def _counters(self) -> list[Path]:
        """Files that may have it: version 2 of control groups, then version 1.

        A container may be told of its group by a name that is valid outside only; its own is
        mounted at the root then.
        """
        try:
            lines = self._control_groups.read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            _, controllers, group = line.split(":", 2)
            inside = group.lstrip("/")
            if not controllers:
                found += [self._root / inside / "memory.events", self._root / "memory.events"]
            elif "memory" in controllers.split(","):
                memory = self._root / "memory"
                found += [memory / inside / "memory.oom_control", memory / "memory.oom_control"]
        return found
