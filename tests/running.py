"""A real daemon for tests: `ffedge serve` as a process group on loopback, killed at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx2

T = TypeVar("T")

CONFIG = """\
[model]
name = "mlp"
input_shape = [{features}]
max_classes = 10
hidden = [64, 64]
[store]
directory = {directory}
[server]
port = 0
[learner]
block_samples = 64
steps_per_block = 16
max_wait_seconds = 1.0
"""


def wait_for(
    probe: Callable[[], T | None], what: str, seconds: float = 30.0, every: float = 0.02
) -> T:
    """The first result of `probe` that is neither None nor False, or a failure that says what."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found is not None and found is not False:
            return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


class RunningDaemon:
    def __init__(
        self,
        folder: Path,
        features: int = 64,
        more: str = "",
        *,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "daemon"),
    ) -> None:
        self._environment = os.environ | dict(environment or {})
        self._program = program
        self.store = folder / "var"
        self.log = folder / "daemon.log"
        self.config = folder / "ffedge.toml"
        directory = json.dumps(str(self.store))
        self.config.write_text(CONFIG.format(features=features, directory=directory) + more)
        self.log.touch()

    def spawn(self) -> subprocess.Popen[bytes]:
        """The process, in a session of its own, writing to the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self._program, "serve", "--config", str(self.config)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> RunningDaemon:
        seen = self.log.stat().st_size
        self.process = self.spawn()

        def address() -> str | None:
            assert self.process.poll() is None, self.log.read_text()[seen:]
            new = self.log.read_bytes()[seen:].decode().splitlines()
            lines = [json.loads(line) for line in new if '"message": "listening"' in line]
            return lines[0]["address"] if lines else None

        self.client = httpx2.Client(base_url=wait_for(address, "the daemon to listen"), timeout=30)
        return self

    def __enter__(self) -> RunningDaemon:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.kill_group()

    def kill_group(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def restarts(self) -> float:
        """How often the learner has ended, for whatever reason."""
        lines = self.client.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("ffedge_learner_restarts_total{")]
        assert counts
        return sum(float(line.rpartition(" ")[2]) for line in counts)

    def metric(self, name: str) -> float | None:
        """The value of a metric, whose labels, if it has any, are part of its name."""
        lines = self.client.get("/metrics").text.splitlines()
        values = [line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")]
        return float(values[0]) if values else None

    def learner_up(self) -> bool:
        return bool(self.client.get("/health/ready").json().get("learner"))

    def settled(self) -> bool:
        """Nothing is left to learn, and no job runs or waits."""
        states = {job["state"] for job in self.client.get("/train").json()["jobs"]}
        backlog = self.metric("ffedge_learner_backlog_samples")
        return backlog == 0 and states <= {"completed", "failed"}

    def learner_pid(self) -> int | None:
        started = [
            json.loads(line)["pid"]
            for line in self.log.read_text().splitlines()
            if '"message": "learner started"' in line
        ]
        return started[-1] if started else None
