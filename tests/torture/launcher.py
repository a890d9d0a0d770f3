"""Starts `ffedge` with an idle learner, and with seeded bugs patched in before anything runs.

    tests.torture.launcher [--learner MODULE ORDER] [BUG ...] -- serve --config FILE

The learner's place is taken by a process that says it is up and does nothing, since a harness that
breaks the store needs none and starts a daemon hundreds of times; or by a module of a harness.
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
    before = sys.argv[1:split]
    learner = [sys.executable, "-I", "-S", "-c", _IDLE]
    if before[:1] == ["--learner"]:
        learner = [sys.executable, "-m", *before[1:3]]
        before = before[3:]
    for bug in before:
        plant(bug)
    sys.argv[1:] = sys.argv[split + 1 :]
    real = engines.python_child.python_command

    def other_learner(module: str, *arguments: str) -> list[str]:
        if arguments[:1] == ("learner",):
            return learner
        return real(module, *arguments)

    engines.python_child.python_command = other_learner
    daemon.__main__.main()
