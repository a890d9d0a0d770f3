"""Starts `ffedge` with an idle learner, and with seeded bugs patched in before anything runs.

    tests.torture.launcher [BUG ...] -- serve --config FILE

The learner's place is taken by a process that says it is up and does nothing, since a harness that
breaks the store needs none and starts a daemon hundreds of times.
"""

from __future__ import annotations

import sys

import daemon.__main__
import engines.python_child
from tests.torture.bugs import plant

_IDLE = """
import sys
sys.stdin.buffer.readline()
print('{"type": "started", "resumed": false, "last_seq": 0, "steps": 0}', flush=True)
sys.stdin.buffer.read()
"""


def main() -> None:
    """Patch what the arguments name, then be the daemon."""
    split = sys.argv.index("--")
    for bug in sys.argv[1:split]:
        plant(bug)
    sys.argv[1:] = sys.argv[split + 1 :]
    real = engines.python_child.python_command

    def idle_learner(module: str, *arguments: str) -> list[str]:
        if arguments[:1] == ("learner",):
            return [sys.executable, "-I", "-S", "-c", _IDLE]
        return real(module, *arguments)

    engines.python_child.python_command = idle_learner
    daemon.__main__.main()
