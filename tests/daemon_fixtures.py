"""Small parts of a real daemon, for the tests of the service side."""

from __future__ import annotations

import dataclasses
import functools
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from daemon.config import GateSettings
from daemon.ingest.sample import Sample
from daemon.serving.promotion import Promotion
from daemon.serving.slot import Served, ServingSlot
from daemon.serving.swaps import Swaps
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from daemon.store.schema import DATABASE_NAME
from daemon.supervision.exits import REASONS
from daemon.supervision.jobs import JobBook
from daemon.supervision.supervisor import Supervisor
from daemon.telemetry import Telemetry
from engines import Weights, open_predict_engine, open_train_engine, weights_to_bytes
from models import ModelSpec

SPEC = ModelSpec("mlp", (6,), 3, (8, 8))
WAIT_SECONDS = 20


def sample(value: int = 0, label: int | str = "a", **changes: Any) -> Sample:
    plain = Sample(bytes([value % 256] * 6), "uint8", label, id=None, source="test", ts=None)
    return dataclasses.replace(plain, **changes)


def open_store(folder: Path, **changes: Any) -> SampleStore:
    settings = {"max_classes": 3, "holdout_ratio": 0.1, "queue_samples": 1000} | changes
    return SampleStore(folder, **settings)


def added(store: SampleStore, *samples):
    return store.add(list(samples)).result(WAIT_SECONDS)


class HeldWriter:
    """Holds the writer in `on_commit` until it is opened, and keeps what it was told."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self._entered, self._open = threading.Event(), threading.Event()

    def on_commit(self, samples: int, seconds: float) -> None:
        assert seconds >= 0
        self.commits.append(samples)
        self._entered.set()
        assert self._open.wait(WAIT_SECONDS)

    def open(self) -> None:
        self._open.set()

    def hold(self, store: SampleStore) -> Future:
        first = store.add([sample(label="a")])
        assert self._entered.wait(WAIT_SECONDS)
        return first


def query(folder: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What another connection finds in the database."""
    with closing(sqlite3.connect(folder / DATABASE_NAME)) as connection, connection:
        return connection.execute(sql, values).fetchall()


@functools.cache
def _network(seed: int, spec: ModelSpec) -> Weights:
    learner = open_train_engine(spec, seed=seed)
    return learner.export(classes=("a", "b", "c"), version=1, parent=None, last_seq=0)


def network(version: int, seed: int | None = None, spec: ModelSpec = SPEC) -> Weights:
    """A healthy version; networks of different numbers answer differently."""
    plain = _network(version if seed is None else seed, spec)
    return dataclasses.replace(plain, version=version)


def with_element(weights: Weights, name: str, value: float) -> Weights:
    array = np.array(weights.arrays[name])
    array.flat[0] = value
    return dataclasses.replace(weights, arrays={**weights.arrays, name: array})


def put(versions: VersionStore, weights: Weights) -> Weights:
    """What the learner does with a candidate before it proposes it."""
    versions.path(weights.version).write_bytes(weights_to_bytes(weights))
    return weights


@dataclasses.dataclass
class Parts:
    folder: Path
    store: SampleStore
    versions: VersionStore
    swaps: Swaps
    slot: ServingSlot
    jobs: JobBook
    promotion: Promotion
    telemetry: Telemetry

    @property
    def serving(self) -> int:
        return self.slot.current.weights.version

    def reading(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@contextmanager
def daemon_parts(folder: Path, **gate: Any) -> Iterator[Parts]:
    """Everything between the learner and the HTTP surface, with version 1 serving."""
    with closing(open_store(folder)) as store:
        telemetry = Telemetry(CollectorRegistry())
        versions = VersionStore(folder / "versions", keep=3)
        first = versions.start(network)
        engine = open_predict_engine("torch")
        slot = ServingSlot(Served(first, engine.open(first)))
        jobs = JobBook([], lambda number, job: None)
        settings = GateSettings(**gate)
        swaps = Swaps(versions, slot, store, engine, settings, telemetry)
        promotion = Promotion(versions, swaps, slot, store, engine, settings, telemetry)
        yield Parts(folder, store, versions, swaps, slot, jobs, promotion, telemetry)


def made(parts, command, hang_seconds: float = 30.0) -> Supervisor:
    return Supervisor(
        command,
        parts.promotion,
        parts.swaps,
        parts.jobs,
        parts.store,
        parts.telemetry,
        first_samples=1,
        hang_seconds=hang_seconds,
    )


PRELUDE = """
import json, os, sys, time
def say(kind, **fields):
    print(json.dumps({"type": kind, **fields}), flush=True)
def hear_any():
    line = sys.stdin.readline()
    return json.loads(line) if line else None
def hear():
    while (message := hear_any()) is not None and message["type"] == "watch": pass
    return message
def ready():
    say("started", resumed=False, last_seq=0, steps=0)
def progress(samples=0, steps=0):
    say("progress", samples=samples, steps=steps, seconds=0.5 if steps else 0.0, last_seq=samples,
        backlog=7, progressive_accuracy=0.5, recent_accuracy=0.25, losses=[0.7, 0.6][:steps])
def propose(version, sha256):
    scores = {"n": 100, "incumbent_correct": 80, "best_correct": 80, "candidate_correct": 90}
    say("proposed", version=version, sha256=sha256, scores=scores)
def until_closed():
    while hear() is not None: pass
begin = hear()
"""


@contextmanager
def running(
    parts, script: str, *arguments: str, prelude: str = PRELUDE, hang_seconds: float = 30.0
):
    """A supervisor over a fake learner, with every start noted; always stopped."""
    starts = parts.folder / "starts"
    note = f"import time; open({str(starts)!r}, 'a').write(f'{{time.monotonic()}}\\n')\n"
    command = [sys.executable, "-I", "-S", "-c", note + prelude + script, *arguments]
    supervisor = made(parts, command, hang_seconds)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def starts(parts) -> list[float]:
    path = parts.folder / "starts"
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def restarts(parts, *reasons: str) -> float:
    """Of these reasons; of all when none is named."""
    return sum(
        parts.reading("ffedge_learner_restarts_total", reason=reason)
        for reason in reasons or REASONS
    )


def failures(parts) -> list[str]:
    return [job["error"] for job in parts.jobs.list() if job["error"]]


def job_states(parts) -> list[tuple[str, str | None]]:
    return [(job["state"], job["error"]) for job in parts.jobs.list()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
