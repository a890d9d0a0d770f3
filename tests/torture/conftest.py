"""What the harnesses share: the zygote, the shim, a record of what was found."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.torture import shim
from tests.torture.processes import Zygote
from tests.torture.shim import Shim


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Shim | None:
    """The shim, where it can be built."""
    return None if shim.missing() else Shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def zygote(preloaded: Shim | None) -> Iterator[Zygote]:
    """One for the session, with the shim, which does nothing until told, preloaded."""
    zygote = Zygote(preloaded.environment if preloaded else {})
    yield zygote
    zygote.close()


@pytest.fixture
def fault_shim(preloaded: Shim | None) -> Iterator[Shim]:
    """The shim, disarmed before and after; skips where it cannot be built."""
    if preloaded is None:
        pytest.skip(str(shim.missing()))
    preloaded.disarm()
    yield preloaded
    preloaded.disarm()
    preloaded.shift_clock(0)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for thousands of files that need not last."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """How much of something a run does, by the name of its option."""
    return lambda name: int(request.config.getoption(name))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--torture-seed"))


@pytest.fixture
def progress(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line while a long run goes on."""

    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n  {text}")
            sys.stdout.flush()

    return say


@pytest.fixture
def record(
    request: pytest.FixtureRequest, progress: Callable[[str], None]
) -> Callable[[Any], None]:
    """Prints what a harness found, and adds it to the file of `--torture-json`."""

    def note(result: Any) -> None:
        found = {
            name: value if not isinstance(value, list) or len(value) < 10 else summary(value)
            for name, value in dataclasses.asdict(result).items()
        }
        line = json.dumps({"test": request.node.name, **found})
        progress(line)
        path = request.config.getoption("--torture-json")
        if path:
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return note


def summary(values: list[Any]) -> Any:
    """Of many figures the middle and the ends; of many texts the first."""
    if isinstance(values[0], float):
        values = sorted(values)
        return {
            "n": len(values),
            "median": values[len(values) // 2],
            "p99": values[min(len(values) - 1, int(0.99 * len(values)))],
            "largest": values[-1],
        }
    return [*values[:10], f"and {len(values) - 10} more"]
