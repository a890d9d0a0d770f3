"""Command lines of our own modules in another Python process.

`python -m` looks first into the folder it is started in, where anything may lie: a folder named
`daemon`, say. `PYTHONSAFEPATH` ends that from Python 3.11 on only, and JetPack 6 has 3.10.
"""

from __future__ import annotations

import sys
from pathlib import Path

_BOOT = (
    "import runpy, sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """A command line that runs a module of ours, wherever it is started.

    Args:
        module: Its full name.
        arguments: Of the program.
    """
    here = str(Path(__file__).parents[1])
    return [sys.executable, "-c", _BOOT, here, module, *arguments]
