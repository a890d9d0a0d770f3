"""Starts `ffedge` with its real learner, which fills memory until it is killed when SIGUSR1 comes.

    tests.torture.ballooning [BUG ...] -- serve --config FILE

The signal's handler runs between any two steps of the interpreter: a leak that bursts anywhere.
"""

from __future__ import annotations

import signal
import sys

import daemon.__main__
import engines.python_child
from tests.torture.bugs import plant

_MODULE = "tests.torture.ballooning"
_PIECE_BYTES = 8 << 20


def main() -> None:
    """Be the daemon, or the learner that it starts."""
    split = sys.argv.index("--")
    for bug in sys.argv[1:split]:
        plant(bug)
    sys.argv[1:] = sys.argv[split + 1 :]
    if sys.argv[1] == "learner":
        signal.signal(signal.SIGUSR1, balloon)
    real = engines.python_child.python_command

    def command(module: str, *arguments: str) -> list[str]:
        if arguments[:1] == ("learner",):
            return [sys.executable, "-m", _MODULE, "--", *arguments]
        return real(module, *arguments)

    engines.python_child.python_command = command
    daemon.__main__.main()


def balloon(*_: object) -> None:
    """Take memory, and use it, until there is none."""
    held = []
    while True:
        held.append(b"x" * _PIECE_BYTES)


if __name__ == "__main__":
    main()
