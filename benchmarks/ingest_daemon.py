"""The daemon that `benchmarks.ingest` loads: `ffedge serve` with a small config, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.ingest_client import Finding, Plan
from benchmarks.trial import TrialError

_CONFIG = """\
[model]
input_shape = [{features}]
max_classes = 10
hidden = [64, 64]
[store]
directory = {store}
[server]
port = 0
address_connections = 512
[learner]
block_samples = {block}
max_wait_seconds = {wait}
[power]
provider = "none"
"""
_NEVER = 10**9
_START_SECONDS = 120
_STOP_SECONDS = 60
_CLIENT_SECONDS = 300


@dataclass(frozen=True)
class LoadedDaemon:
    """A daemon that answers.

    Args:
        host: Where.
        port: Where.
        pid: Of its server.
        ready_seconds: From its start to the first `GET /health/ready` that says so.
    """

    host: str
    port: int
    pid: int
    ready_seconds: float

    def get(self, path: str) -> bytes:
        """The body that a GET of `path` answers."""
        url = f"http://{self.host}:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            body: bytes = answer.read()
        return body

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        lines = self.get("/metrics").decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))

    def cpu_seconds(self) -> float:
        """What its server has computed so far: unlike a rate, hardly changed by a neighbour."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def load(self, **plan: Any) -> Finding:  # noqa: ANN401 - a Plan's fields
        """See `run_client`."""
        return run_client(host=self.host, port=self.port, **plan)


def run_client(**plan: Any) -> Finding:  # noqa: ANN401 - a Plan's fields
    """What a client in a process of its own finds when it carries out the plan.

    Raises:
        TrialError: The client failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest_client"],
        input=msgspec.json.encode(Plan(**plan)),
        capture_output=True,
        timeout=_CLIENT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise TrialError(f"the client failed: {done.stderr.decode()[-500:]}")
    return msgspec.json.decode(done.stdout, type=Finding)


@contextmanager
def serving(
    folder: Path,
    features: int,
    *,
    learning: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[LoadedDaemon]:
    """A daemon whose store is in `folder`, ended at the end.

    Args:
        folder: For the store, the config and the log; may hold a store of before.
        features: Values a sample.
        learning: Whether the learner learns while it is loaded, or waits for ever.
        environment: Added to this process's own.

    Raises:
        TrialError: It does not start.
    """
    config, log = folder / "ffedge.toml", folder / "daemon.log"
    block, wait = (128, 5.0) if learning else (_NEVER, float(_NEVER))
    store = json.dumps(str(folder / "var"))
    config.write_text(_CONFIG.format(features=features, store=store, block=block, wait=wait))
    with log.open("wb") as to:
        began = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "daemon", "serve", "--config", str(config)],
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=to,
            start_new_session=True,
        )
    try:
        host, port = _address(process, log)
        daemon = LoadedDaemon(host, port, process.pid, 0.0)
        _wait_until_ready(daemon)
        yield LoadedDaemon(host, port, process.pid, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    deadline = time.perf_counter() + _START_SECONDS
    while time.perf_counter() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"message": "listening"' in line:
                host, _, port = json.loads(line)["address"].removeprefix("http://").partition(":")
                return host, int(port)
        time.sleep(0.005)
    raise TrialError(f"the daemon did not start: {log.read_text()[-500:]}")


def _wait_until_ready(daemon: LoadedDaemon) -> None:
    deadline = time.perf_counter() + _START_SECONDS
    while time.perf_counter() < deadline:
        try:
            daemon.get("/health/ready")
        except urllib.error.URLError:
            time.sleep(0.005)
        else:
            return
    raise TrialError("the daemon did not become ready")


def slow_fsync(folder: Path, microseconds: int) -> dict[str, str]:
    """Environment of a daemon whose every fsync takes so much longer; compiles the shim.

    Raises:
        TrialError: There is no C compiler, or it fails.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise TrialError("a delayed fsync needs a C compiler: install cc, or leave out that part")
    source, library = Path(__file__).with_name("slow_fsync.c"), folder / "slow_fsync.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise TrialError(f"cc failed: {done.stderr[-300:]}")
    return {"LD_PRELOAD": str(library), "FSYNC_DELAY_MICROSECONDS": str(microseconds)}
