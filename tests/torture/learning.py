"""A real learner in a process of its own, under a server that is played, and ways for it to die.

    tests.torture.learning:learner COMMANDS REPORTS DEATH [BUG ...] -- learner --config FILE

COMMANDS and REPORTS are named pipes, in the place of standard input and output. DEATH is `never`
or where the process ends itself by SIGKILL, `PLACE:N`, at the Nth time: `unit`, between two units
of a step, or a place in the writing of a file (`_WRITING`).
"""

from __future__ import annotations

import functools
import importlib
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from daemon.messages import FromLearner, send
from engines.python_child import python_command
from tests.torture.processes import Forked, Zygote

# Of each file that is replaced (daemon/durable.py), in order.
_WRITING = ("half written", "not synced", "not renamed", "renamed", "written")
DEATHS = ("unit", *_WRITING)
WAIT_SECONDS = 60.0


def _forgets_steps() -> None:
    """Resumes as if no step had been taken: rows and noise are drawn a second time."""

    def forget(self: Any) -> None:
        self._state.steps = 0

    _after("daemon.learning.learner", "Learner", "restore", forget)


def _forgets_moments() -> None:
    """Resumes with the optimizer's state of a beginner, as one that saves weights alone would."""

    def forget(self: Any) -> None:
        state = self._state.engine.state()
        beginners = {n: a * 0 for n, a in state.items() if ".exp_avg" in n}
        assert beginners, "the optimizer's state has other names"
        self._state.engine.load_state(state | beginners)

    _after("daemon.learning.learner", "Learner", "restore", forget)


def _writes_in_place() -> None:
    """A checkpoint is written over itself, and dies with its writer."""

    def write(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.fsync(os.open(path.parent, os.O_RDONLY))

    module = importlib.import_module("daemon.learning.checkpoints")
    assert module.replace_file
    module.replace_file = write  # type: ignore[attr-defined]


BUGS = {
    bug.__name__.lstrip("_"): bug for bug in (_forgets_steps, _forgets_moments, _writes_in_place)
}


def _after(module: str, owner: str, name: str, then: Callable[[Any], None]) -> None:
    kind = getattr(importlib.import_module(module), owner)
    original = getattr(kind, name)

    @functools.wraps(original)
    def patched(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        then(self)
        return result

    setattr(kind, name, patched)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(place: str, times: int) -> None:
    """Arrange for this process's death."""
    left = times

    def now() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if place == "unit":
        _after("engines.local_unit", "LocalUnit", "judge", lambda _: now() and _die())
        return
    moment = _WRITING.index(place)
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if folder == (moment >= 3) and now():
            if moment == 0:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            if moment in (2, 4):
                fsync(descriptor)
            _die()
        fsync(descriptor)

    os.fsync = sync


def learner() -> None:
    """Become the learner; see the module."""
    commands, reports, death, *rest = sys.argv[1:]
    split = rest.index("--")
    os.dup2(os.open(commands, os.O_RDONLY), 0)
    os.dup2(os.open(reports, os.O_WRONLY), 1)
    for bug in rest[:split]:
        BUGS[bug]()
    # Candidates as often as they can be, so that not all is learned before the first.
    importlib.import_module("daemon.learning.process")._PROPOSE_SECONDS = 0.05
    if death != "never":
        place, _, times = death.partition(":")
        _die_at(place, int(times))
    import daemon.__main__

    sys.argv[1:] = rest[split + 1 :]
    daemon.__main__.main()


class LearnerEndedError(Exception):
    """The learner is gone."""


class PlayedServer:
    """The server's end of a learner's pipes.

    Args:
        folder: With `ffedge.toml`; pipes and log are made here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pipes = [folder / "commands", folder / "reports"]
        self._process: Forked | subprocess.Popen[bytes] | None = None

    def fork(self, zygote: Zygote, death: str, *bugs: str, **settings: object) -> None:
        """Start the learner by way of the zygote."""
        self._open()
        arguments = [*map(str, self._pipes), death, *bugs, "--", *self._arguments]
        self._process = zygote.fork(
            "tests.torture.learning:learner",
            arguments,
            self.folder / "learner.log",
            {f"FFEDGE_{key.upper()}": str(value) for key, value in settings.items()},
        )

    def start(self) -> None:
        """Start it as the daemon does."""
        self._open()
        with (self.folder / "learner.log").open("ab") as log:
            self._process = subprocess.Popen(
                python_command("daemon", *self._arguments),
                stdin=os.open(self._pipes[0], os.O_RDONLY),
                stdout=os.open(self._pipes[1], os.O_WRONLY),
                stderr=log,
            )

    @property
    def _arguments(self) -> list[str]:
        return ["learner", "--config", str(self.folder / "ffedge.toml")]

    def _open(self) -> None:
        for pipe in self._pipes:
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
        # Both ends, so that opening waits for nobody; a death shows by the process, not by an end.
        self._commands = os.fdopen(os.open(self._pipes[0], os.O_RDWR), "wb", buffering=0)
        self._reports = os.open(self._pipes[1], os.O_RDWR | os.O_NONBLOCK)
        self._heard = b""

    def say(self, message: msgspec.Struct) -> None:
        send(self._commands, message)

    def hear(self, until: float) -> FromLearner | None:
        """The next report; None where none has come by `until`, on the monotonic clock.

        Raises:
            LearnerEndedError: The learner is gone, and has said nothing more.
        """
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while b"\n" not in self._heard:
            if time.monotonic() >= until:
                return None
            ended = self._process.poll() is not None
            ready, _, _ = select.select([self._reports], [], [], 0.0 if ended else 0.02)
            if ready:
                self._heard += os.read(self._reports, 1 << 16)
            elif ended:
                raise LearnerEndedError(f"ended, last said {self._heard[:200]!r}")
            assert time.monotonic() < deadline, "the learner says nothing"
        line, _, self._heard = self._heard.partition(b"\n")
        return msgspec.json.decode(line, type=FromLearner)

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(WAIT_SECONDS)
        self._close()

    def close(self) -> None:
        """Close its input, at which it ends by itself."""
        assert self._process is not None
        self._commands.close()
        self._process.wait(WAIT_SECONDS)
        os.close(self._reports)

    def _close(self) -> None:
        self._commands.close()
        os.close(self._reports)
