"""Programs that the tests need and that a machine may lack."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Path of a program, from this environment first; the test is skipped where there is none."""
    own = str(Path(sys.executable).parent)
    found = shutil.which(name, path=own) or shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is not installed: pip install '.[dev]' brings it, where it has a wheel"
        )
    return found
