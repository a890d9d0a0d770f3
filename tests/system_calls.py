"""Runs a command under a unit's SystemCallFilter=, as systemd would, without systemd.

    python system_calls.py UNIT COMMAND...

Needs systemd-analyze, for what is in a named set, and libseccomp, both of which systemd brings.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_FAIL_WITH_EPERM = 0x00050000 | 1


def missing() -> str | None:
    """What is not here, of that which this needs."""
    if ctypes.util.find_library("seccomp") is None:
        return "libseccomp is not installed"
    try:
        subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "systemd-analyze is not installed"
    return None


def allowed_calls(unit: str) -> set[str]:
    """Names of the system calls that a unit's filter lets through."""
    allowed = _members("@default")
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            names = set[str]().union(*map(_members, value.removeprefix("~").split()))
            allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


def _members(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    named = [line for line in lines if line and not line.startswith("#")]
    return set[str]().union(*map(_members, named))


def load(names: set[str]) -> None:
    """From here on every other system call of this process fails with EPERM."""
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
    ]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(_FAIL_WITH_EPERM)
    for name in sorted(names):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # a name of another architecture has none
            library.seccomp_rule_add(context, _ALLOW, number, 0)
    if library.seccomp_load(context) != 0:
        raise OSError("the filter cannot be loaded")


if __name__ == "__main__":
    load(allowed_calls(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])
