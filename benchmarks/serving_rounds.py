"""Rounds of `benchmarks.serving_latency`: daemons that are loaded with predictions, one at a time.

Every daemon of a run is started beforehand and waits, paused by its API; a round loads one of them,
paused or not. Samples are posted in both kinds of round, so that they differ in training alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ingest_daemon import LoadedDaemon, serving
from benchmarks.report import Record
from benchmarks.trial import TrialError

_SETTLE_SECONDS = 60.0
_FIRST_SAMPLES = 512
_POLICIES = {"other": os.SCHED_OTHER, "batch": os.SCHED_BATCH, "idle": os.SCHED_IDLE}
_JOB = {"max_steps": 1_000_000, "max_seconds": 5.0, "reason": "always at work"}


@dataclass(frozen=True)
class Variant:
    """How the learner is run.

    Args:
        name: As it was asked for.
        environment: Of the daemon.
        learner_cores: The learner is kept on; empty: on all.
        policy: Of the kernel's scheduler, for the learner: `other`, `batch` or `idle`.
    """

    name: str
    environment: dict[str, str]
    learner_cores: tuple[int, ...] = ()
    policy: str = "other"

    @classmethod
    def parse(cls, text: str) -> Variant:
        """From `key=value,...`: keys of `[learner]`, others as `governor.key`, `cores`, `policy`.

        Raises:
            ValueError: It is none.
        """
        environment: dict[str, str] = {}
        cores: tuple[int, ...] = ()
        policy = "other"
        for part in filter(None, text.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"found {part!r}; wanted key=value")
            if key == "cores":
                cores = tuple(map(int, value.split("+")))
            elif key == "policy" and value in _POLICIES:
                policy = value
            else:
                section, _, name = key.rpartition(".")
                environment[f"FFEDGE_{(section or 'learner').upper()}__{name.upper()}"] = value
        return cls(text or "default", environment, cores, policy)


@dataclass(frozen=True)
class Load:
    """What every round does.

    Args:
        seconds: How long predictions are measured.
        rate: Predictions a second, at random times.
        samples_rate: Samples posted a second, by a client of their own, in batches of 16.
        features: Values a sample.
        hidden: Widths of the network.
    """

    seconds: float
    rate: float
    samples_rate: float
    features: int
    hidden: tuple[int, ...]


def measure(variants: Sequence[Variant], load: Load, rounds: int) -> Iterator[Record]:
    """A record a round: each variant with training off and on, in turn.

    Raises:
        TrialError: A daemon or a client fails.
    """
    with ExitStack() as stack:
        running = [(v, stack.enter_context(_started(v, load))) for v in variants]
        for number in range(rounds):
            # Each goes first as often as last: what a machine does by and by is nobody's fault.
            turn = running[number % len(running) :] + running[: number % len(running)]
            for variant, daemon in turn:
                for training in (False, True) if number % 2 == 0 else (True, False):
                    seed = 2 * number + training
                    record = _round(variant, daemon, load, seed, training=training)
                    yield {"round": number, "variant": variant.name, **record}


@contextmanager
def _started(variant: Variant, load: Load) -> Iterator[LoadedDaemon]:
    hidden = json.dumps(load.hidden)
    environment = {"FFEDGE_MODEL__HIDDEN": hidden, **variant.environment}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), load.features, learning=True, environment=environment) as daemon,
    ):
        # A first version, so that every prediction has a network that has learned.
        daemon.load(
            form="binary",
            batch=256,
            features=load.features,
            connections=1,
            seconds=30.0,
            requests=_FIRST_SAMPLES // 256,
        )
        _wait(lambda: daemon.metric("ffedge_learn_steps_total") > 0, "the first steps")
        learner = _learner(daemon)
        if variant.learner_cores:
            learner.cpu_affinity([*variant.learner_cores])
        for thread in learner.threads():
            os.sched_setscheduler(thread.id, _POLICIES[variant.policy], os.sched_param(0))
        _post(daemon, "/train/pause", {"reason": "between rounds"})
        yield daemon


def _round(
    variant: Variant, daemon: LoadedDaemon, load: Load, seed: int, *, training: bool
) -> Record:
    with _training(daemon, wanted=training):
        before, learner = _counters(daemon), _learner(daemon)
        learner_seconds, server_seconds = _cpu(learner), daemon.cpu_seconds()
        began = time.perf_counter()
        with _samples(daemon, load, seed):
            found = daemon.load(
                form="json",
                batch=1,
                features=load.features,
                connections=64,
                seconds=load.seconds,
                warm_up_seconds=1.0,
                rate=load.rate,
                seed=seed,
                predict=True,
            )
        seconds = time.perf_counter() - began
        after = _counters(daemon)
        learning = json.loads(daemon.get("/train"))["learning"]
        return {
            "training": training,
            "duty": learning["duty"],
            "rate": load.rate,
            "samples_rate": load.samples_rate,
            "hidden": load.hidden,
            "p50": found.p50,
            "p99": found.p99,
            "p999": found.p999,
            "lag_p99": found.lag_p99,
            "planned": found.planned,
            "statuses": found.statuses,
            "unanswered": found.unanswered,
            "latency_quantiles": found.latency_quantiles,
            "learner_cpu_ratio": (_cpu(learner) - learner_seconds) / seconds,
            "server_cpu_ratio": (daemon.cpu_seconds() - server_seconds) / seconds,
            **{name: after[name] - before[name] for name in before},
        }


def _counters(daemon: LoadedDaemon) -> dict[str, float]:
    steps = daemon.metric("ffedge_learn_steps_total")
    return {"steps": steps, "swaps": daemon.metric("ffedge_model_version")}


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _learner(daemon: LoadedDaemon) -> psutil.Process:
    for child in psutil.Process(daemon.pid).children():
        if "learner" in child.cmdline():
            return child
    raise TrialError("the daemon has no learner")


@contextmanager
def _training(daemon: LoadedDaemon, *, wanted: bool) -> Iterator[None]:
    """Training that never rests, or none."""
    if not wanted:
        _post(daemon, "/train/pause", {"reason": "a round without training"})
        yield
        return
    _post(daemon, "/train/resume", {})
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.5):
            _post(daemon, "/train", _JOB)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        steps = daemon.metric("ffedge_learn_steps_total")
        _wait(lambda: daemon.metric("ffedge_learn_steps_total") > steps, "it to train")
        yield
    finally:
        stop.set()
        asking.join()
        _post(daemon, "/train/pause", {"reason": "between rounds"})


@contextmanager
def _samples(daemon: LoadedDaemon, load: Load, seed: int) -> Iterator[None]:
    """New samples all the while, from a process of their own."""
    if not load.samples_rate:
        yield
        return
    plan = {
        "host": daemon.host,
        "port": daemon.port,
        "form": "binary",
        "batch": 16,
        "features": load.features,
        "connections": 8,
        "seconds": load.seconds + 1.0,
        "rate": load.samples_rate / 16,
        "seed": seed,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ingest_client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as client:
        assert client.stdin is not None  # noqa: S101 - PIPE was asked for
        client.stdin.write(json.dumps(plan).encode())
        client.stdin.close()
        yield
    if client.returncode != 0:
        raise TrialError("the client that posts samples failed")


def _post(daemon: LoadedDaemon, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"http://{daemon.host}:{daemon.port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise TrialError(f"POST {path} was answered {error.code}") from error


def _wait(probe: Any, what: str) -> None:  # noqa: ANN401 - a callable
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not probe():
        if time.monotonic() > deadline:
            raise TrialError(f"waited in vain for {what}")
        time.sleep(0.05)
