"""A child runs our code, whatever lies in the folder that it is started in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from daemon import __version__
from engines.python_child import python_command


@pytest.mark.parametrize("shadowed", ["daemon", "engines", "json"])
def test_what_lies_in_the_folder_is_not_run(tmp_path: Path, shadowed: str) -> None:
    (tmp_path / shadowed).mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / shadowed / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    # Python 3.10 does not know it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        python_command("daemon", "version"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{__version__}\n", "")
