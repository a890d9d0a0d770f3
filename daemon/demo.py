"""The demonstration: real digits, a real daemon, real requests, watched from outside.

A daemon is started on an empty store in a temporary directory. Four sensors post scikit-learn's
1,797 handwritten digits, one labelled sample a request, while two clients keep asking for
predictions. All that is shown comes from the daemon's own HTTP answers and `GET /metrics`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from sklearn.datasets import load_digits

from daemon.config import ENVIRONMENT_PREFIX
from daemon.demo_screen import Screen, open_screen
from daemon.errors import FfedgeError
from engines.python_child import python_command

SENSORS = 4
CLIENTS = 2
_SENSOR_PAUSE_SECONDS = 0.015
_CLIENT_PAUSE_SECONDS = 0.01
_START_SECONDS = 90.0
_FINISH_SECONDS = 90.0
# Jobs without a better hold-out after which the demonstration ends, and how long it may go on:
# a slow machine has not learned all by the time the last sample comes.
_PATIENCE_JOBS = 3
_LAST_JOBS_SECONDS = 120.0

# Narrower than the default: 1,797 digits need no more, and a slow machine is done sooner.
CONFIG = """\
[model]
name = "mlp"
input_shape = [64]
max_classes = 10
hidden = [500, 500]
[store]
directory = {directory}
[server]
port = 0
"""


@dataclass
class DemoState:
    """What has been seen so far.

    Args:
        total: Samples to send.
        acknowledged: Samples answered 201.
        predictions: Predictions answered with a version.
        predictions_failed: Requests for one that got anything else.
        versions: Versions that answers named.
        metrics: Newest reading of the daemon's metrics, by name and labels.
        history: Progressive accuracy over the newest samples, one entry a reading.
    """

    total: int
    acknowledged: int = 0
    predictions: int = 0
    predictions_failed: int = 0
    versions: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    def metric(self, name: str) -> float | None:
        """A reading, None while the daemon has none."""
        return self.metrics.get(name)

    def count(self, name: str) -> int:
        """A counter's reading, 0 while the daemon has none."""
        return int(self.metrics.get(name, 0))

    @property
    def swaps_refused(self) -> int:
        """Candidates that the gate refused, for any reason."""
        refused = 'ffedge_gate_decisions_total{decision="refused"'
        return int(sum(v for k, v in self.metrics.items() if k.startswith(refused)))

    @property
    def swaps_accepted(self) -> int:
        """Candidates that went on to serve."""
        return self.count('ffedge_gate_decisions_total{decision="accepted",reason=""}')

    @property
    def holdout_accuracy(self) -> float | None:
        """Of the version that serves, on samples that were never trained on."""
        return self.metric('ffedge_holdout_accuracy_ratio{role="active"}')

    @property
    def progressive_accuracy(self) -> float | None:
        """Over all samples, each predicted before it was learned."""
        return self.metric('ffedge_progressive_accuracy_ratio{window="all"}')


def run_demo(*, keep: bool, as_json: bool) -> int:
    """Run it and print the result.

    Args:
        keep: Leave the daemon running and print its address.
        as_json: Print one JSON object as the last line.

    Returns:
        0, or 1 when a prediction failed or a sample is missing.
    """
    directory = Path(tempfile.mkdtemp(prefix="ffedge-demo-"))
    # Whoever ends us, the daemon is not left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with Daemon(directory) as daemon, open_screen() as screen:
            state, seconds = asyncio.run(_stream(daemon, screen))
            result = _result(state, seconds)
            if keep:
                result["address"] = daemon.address
                daemon.keep()
    except KeyboardInterrupt:
        screen.note("stopped")
        shutil.rmtree(directory)
        return 130
    screen.result(result)
    if keep:
        screen.note(f"the daemon goes on at {daemon.address}; its files are in {directory}")
        screen.note(f"stop it with: kill {daemon.pid}; then remove the files")
    else:
        shutil.rmtree(directory)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["predictions_failed"] == 0 and state.acknowledged == state.total else 1


def _environment() -> dict[str, str]:
    """Ours without its FFEDGE_* settings: they are meant for a daemon that matters."""
    return {k: v for k, v in os.environ.items() if not k.upper().startswith(ENVIRONMENT_PREFIX)}


class Daemon:
    """`ffedge serve` as a child process, in a session of its own so that Ctrl-C stays ours.

    Args:
        directory: For its configuration, store and log.
    """

    def __init__(self, directory: Path) -> None:
        config = directory / "ffedge.toml"
        config.write_text(CONFIG.format(directory=json.dumps(str(directory / "var"))))
        self._log = directory / "daemon.log"
        self._keep = False
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                python_command("daemon", "serve", "--config", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )
        self.address = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> None:
        """Until it listens and its learner is up.

        Raises:
            FfedgeError: It ended, or took too long; the message holds the end of its log.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self._log.read_text().splitlines():
                if '"message": "listening"' in line:
                    self.address = json.loads(line)["address"]
            if self.address:
                async with httpx2.AsyncClient(base_url=self.address) as client:
                    ready = (await client.get("/health/ready")).json()
                if ready["learner"]:
                    return
            await asyncio.sleep(0.1)
        tail = "\n".join(self._log.read_text().splitlines()[-5:])
        raise FfedgeError(f"the daemon did not come up; its log {self._log} ends:\n{tail}")

    def keep(self) -> None:
        """Let it live on."""
        self._keep = True

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()


async def _stream(daemon: Daemon, screen: Screen) -> tuple[DemoState, float]:
    screen.note("starting a daemon on an empty store ...")
    await daemon.wait()
    screen.note(f"it listens at {daemon.address}; {SENSORS} sensors begin to post")
    images, labels = load_digits(return_X_y=True)
    digits = [(image.tolist(), int(label)) for image, label in zip(images, labels, strict=True)]
    random.Random(0).shuffle(digits)  # noqa: S311 - the order of a demonstration
    state = DemoState(total=len(digits))
    started = time.monotonic()
    timeout = httpx2.Timeout(10.0)
    async with httpx2.AsyncClient(base_url=daemon.address, timeout=timeout) as client:
        watching = asyncio.create_task(_watch(client, state, screen, started))
        asking = [
            asyncio.create_task(_ask(client, state, digits, number)) for number in range(CLIENTS)
        ]
        try:
            await asyncio.gather(
                *(_sense(client, state, digits[n::SENSORS], n) for n in range(SENSORS))
            )
            await _finish(client, state)
        finally:
            for task in (*asking, watching):
                task.cancel()
            await asyncio.gather(*asking, watching, return_exceptions=True)
        await _read_metrics(client, state)
    return state, time.monotonic() - started


async def _sense(
    client: httpx2.AsyncClient, state: DemoState, digits: list[tuple[list[float], int]], sensor: int
) -> None:
    """Post samples one by one; a retry carries the same id, so none is stored twice."""
    for number, (x, label) in enumerate(digits):
        sample_id = f"digit-{sensor}-{number}"
        body = {"x": x, "label": label, "id": sample_id, "source": f"sensor-{sensor}"}
        while True:
            answer = await client.post("/samples", json=body)
            if answer.status_code == 201:
                break
            if answer.status_code != 503:
                raise FfedgeError(f"POST /samples answered {answer.status_code}: {answer.text}")
            await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
        state.acknowledged += 1
        await asyncio.sleep(_SENSOR_PAUSE_SECONDS)


async def _ask(
    client: httpx2.AsyncClient,
    state: DemoState,
    digits: list[tuple[list[float], int]],
    number: int,
) -> None:
    choose = random.Random(number)  # noqa: S311 - which digit to ask about
    while True:
        x, _ = choose.choice(digits)
        try:
            answer = await client.post("/predict", json={"x": x})
            state.versions.add(answer.raise_for_status().json()["model_version"])
            state.predictions += 1
        except (httpx2.HTTPError, KeyError, ValueError):
            state.predictions_failed += 1
        await asyncio.sleep(_CLIENT_PAUSE_SECONDS)


async def _watch(
    client: httpx2.AsyncClient, state: DemoState, screen: Screen, started: float
) -> None:
    while True:
        await _read_metrics(client, state)
        recent = state.metric('ffedge_progressive_accuracy_ratio{window="recent"}')
        if recent is not None:
            state.history.append(recent)
        screen.show(state, time.monotonic() - started)
        await asyncio.sleep(0.25)


async def _read_metrics(client: httpx2.AsyncClient, state: DemoState) -> None:
    text = (await client.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            state.metrics[name] = sample.value


async def _finish(client: httpx2.AsyncClient, state: DemoState) -> None:
    """Ask for jobs until some in a row have not raised the hold-out accuracy."""
    deadline = time.monotonic() + _LAST_JOBS_SECONDS
    best, without = -1.0, 0
    while without < _PATIENCE_JOBS and time.monotonic() < deadline:
        asked = await _poll(partial(_asked, client))
        await _poll(partial(_ended, client, asked))
        await _read_metrics(client, state)
        found = state.holdout_accuracy or 0.0
        without = 0 if found > best else without + 1
        best = max(best, found)


async def _poll(probe: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the probe finds
    deadline = time.monotonic() + _FINISH_SECONDS
    while time.monotonic() < deadline:
        if (found := await probe()) is not None:
            return found
        await asyncio.sleep(0.1)
    raise FfedgeError(f"the learner did not finish within {_FINISH_SECONDS:.0f} s")


async def _asked(client: httpx2.AsyncClient) -> str | None:
    answer = await client.post("/train", json={"reason": "end of the demonstration"})
    return answer.json()["job"] if answer.status_code == 202 else None


async def _ended(client: httpx2.AsyncClient, job: str) -> bool | None:
    state = (await client.get(f"/train/{job}")).json()["state"]
    return True if state in ("completed", "failed") else None


def _result(state: DemoState, seconds: float) -> dict[str, Any]:
    return {
        "samples": state.count("ffedge_samples_stored"),
        "holdout_accuracy": state.holdout_accuracy,
        "progressive_accuracy": state.progressive_accuracy,
        "swaps_accepted": state.swaps_accepted,
        "swaps_refused": state.swaps_refused,
        "predictions": state.predictions,
        "predictions_failed": state.predictions_failed,
        "seconds": round(seconds, 1),
    }
