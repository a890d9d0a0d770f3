"""Processes of a harness: forked from the zygote, and a daemon that is one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.running import RunningDaemon
from tests.torture.ledger import FEATURES

_DAEMON_MODULES = (
    "uvicorn",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.uvloop",
    "daemon.__main__",
    "daemon.http",
    "daemon.power_metrics",
    "daemon.serving.promotion",
    "engines.torch_predict",
    "engines.untrained",
    "tests.torture.launcher",
    "tests.torture.store_load",
    "tests.torture.version_life",
)


class Forked:
    """A child of the zygote, with what the tests use of `subprocess.Popen`."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    def poll(self) -> int | None:
        return self._zygote.ask(poll=self.pid)["code"]

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (code := self.poll()) is not None:
                return code
            time.sleep(0.002)
        raise subprocess.TimeoutExpired(f"pid {self.pid}", seconds)

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(30)


class Zygote:
    """The forking process; `environment` reaches it before it is a Python process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.zygote", *_DAEMON_MODULES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment),
            cwd=Path(__file__).parents[2],
        )
        self._lock = threading.Lock()

    def ask(self, **order: object) -> dict:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the zygote died"
        return json.loads(line)

    def fork(
        self,
        target: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> Forked:
        answer = self.ask(
            target=target,
            arguments=[*arguments],
            log=str(log),
            environment=dict(environment or {}),
        )
        return Forked(self, answer["pid"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()


class ForkedDaemon(RunningDaemon):
    """`ffedge serve` by way of `tests.torture.launcher`: an idle learner, and a bug where wanted.

    Args:
        zygote: Forks it.
        folder: For configuration, log and, unless `store` says otherwise, the store.
        bugs: Names of `tests.torture.bugs`.
        store: The store's directory.
        learner: Module of a harness and its argument, in place of the idle learner.
        settings: By section and key, as in the environment: `store__queue_samples`.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        *bugs: str,
        store: Path | None = None,
        learner: tuple[str, str] | None = None,
        **settings: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, FEATURES, '[power]\nprovider = "none"\n')
        self._zygote, self._bugs = zygote, bugs
        self._learner = ["--learner", *learner] if learner else []
        if store is not None:
            self.store = store
            settings["store__directory"] = store
        self._settings = {f"FFEDGE_{key.upper()}": str(value) for key, value in settings.items()}

    def spawn(self) -> Forked:  # type: ignore[override]  # all that the tests use of a Popen
        """See `RunningDaemon.spawn`."""
        arguments = [*self._learner, *self._bugs, "--", "serve", "--config", str(self.config)]
        launcher = "tests.torture.launcher:main"
        return self._zygote.fork(launcher, arguments, self.log, self._settings)

    def kill_group(self) -> None:
        """See `RunningDaemon.kill_group`."""
        self.process.kill_group()
