"""R4: versions are swapped, rolled back and activated without pause while clients predict.

Every answer is computed again from the weights of the version that it names: one that is not that
version's is torn. An answer to a request that met no change must name the version that served.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from daemon.serving.slot import Served
from engines import open_predict_engine, open_train_engine, weights_to_bytes
from models import ModelSpec
from tests.running import wait_for
from tests.torture.ledger import FEATURES
from tests.torture.processes import ForkedDaemon, Zygote

SPEC = ModelSpec("mlp", (FEATURES,), 10, (64, 64))
_CLASSES = tuple(f"class {n}" for n in range(10))
_NETWORKS, _INPUTS, _CLIENTS = 16, 8, 3
PREDICTIONS_A_SWAP = 20

Answers = list[list[dict[str, Any]]]


class Request(NamedTuple):
    """One prediction that was answered, on the monotonic clock."""

    began: float
    ended: float
    version: int


class Event(NamedTuple):
    """A change that fell between two moments, and what served after it."""

    what: str
    began: float
    ended: float
    active: int


@dataclass
class Swapped:
    """What some swaps showed; milliseconds where no unit is named.

    Args:
        swaps: Changes of what serves, by the server's count.
        results: By what they were.
        refused: Candidates, by reason.
        predictions: Answered.
        failed: Predictions that were not answered with 200.
        torn: Answers that are not those of the version they name.
        unknown: Answers of versions that never served.
        stale: Answers of another version than the one that served, where none was changed.
        pauses_below_1_ms: Share of swaps in which no request could take a version for less.
        p50_during, p99_during: Latency of requests that met a change.
        p50_else, p99_else: Of all others.
        first_swaps, hundredth_swaps, last_swaps: Time from proposal to verdict, medians of 50.
        resident_growth_kib: Server's memory, a thousand swaps, by least squares over the last half.
        resident_mib: At the end.
        descriptors: Open files of the server, fewest and most in the last half.
    """

    swaps: int = 0
    results: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    predictions: int = 0
    failed: int = 0
    torn: int = 0
    unknown: int = 0
    stale: int = 0
    pauses_below_1_ms: float = 0.0
    pauses_above_2_ms: int = 0
    p50_during: float = 0.0
    p99_during: float = 0.0
    p50_else: float = 0.0
    p99_else: float = 0.0
    first_swaps: float = 0.0
    hundredth_swaps: float = 0.0
    last_swaps: float = 0.0
    resident_growth_kib: float = 0.0
    resident_mib: float = 0.0
    descriptors: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def pool(folder: Path) -> Answers:
    """Write the networks that are proposed; their answers to each input, as clients get them."""
    folder.mkdir()
    open_engine = open_predict_engine("torch").open
    answers: Answers = []
    for number in range(_NETWORKS):
        engine = open_train_engine(SPEC, seed=number)
        engine.standardize_from(np.array(inputs(), np.float32))
        weights = engine.export(classes=_CLASSES, version=1, parent=None, last_seq=0)
        (folder / f"{number:02}").write_bytes(weights_to_bytes(weights))
        served = Served(weights, open_engine(weights))
        answers.append([served.answer(np.array([x], np.float32))[0] for x in inputs()])
    distinct = {json.dumps(answer) for each in answers for answer in each}
    assert len(distinct) == _NETWORKS * _INPUTS
    return answers


def inputs() -> list[list[int]]:
    """What is asked for."""
    return [[(7 * n * (k + 1)) % 256 for k in range(FEATURES)] for n in range(1, _INPUTS + 1)]


class Client(threading.Thread):
    """One connection that predicts without pause.

    Args:
        port: The daemon's.
        number: Begins with another input than the others.
        expected: By network and input.
        stop: Set at the end.
    """

    def __init__(self, port: int, number: int, expected: Answers, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._number, self._expected, self._stop_asked = port, number, expected, stop
        self.answered: list[Request] = []
        self.failed = self.torn = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.connect()
        bodies = [json.dumps({"x": x}).encode() for x in inputs()]
        headers = {"Content-Type": "application/json"}
        place = self._number
        while not self._stop_asked.is_set():
            place = (place + 1) % _INPUTS
            began = time.monotonic()
            try:
                connection.request("POST", "/predict", bodies[place], headers)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed += 1
                self.wrong.append(f"failed: {type(error).__name__}: {error}")
                return
            ended = time.monotonic()
            if response.status != 200:
                self.failed += 1
                self.wrong.append(f"failed: {response.status} {content[:100]!r}")
                continue
            self._check(json.loads(content), place, began, ended)
        connection.close()

    def _check(self, answer: dict[str, Any], place: int, began: float, ended: float) -> None:
        version = int(answer["model_version"])
        self.answered.append(Request(began, ended, version))
        if version == 1:  # untrained: it knows no class
            right = answer["label"] is None and answer["goodness"] == []
        else:
            expected = self._expected[version % _NETWORKS][place]
            right = all(answer[name] == value for name, value in expected.items())
        if not right:
            self.torn += 1
            self.wrong.append(f"torn: an answer of version {version} is not that of its weights")


class Operator(threading.Thread):
    """Rolls back and activates now and then."""

    def __init__(self, port: int, seed: int, stop: threading.Event, longest: float) -> None:
        super().__init__(daemon=True)
        self._port, self._choose, self._stop_asked = port, random.Random(seed), stop
        self._longest = longest
        self.events: list[Event] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop_asked.wait(self._choose.uniform(0, self._longest)):
            what = self._choose.choice(["rollback", "rollback", "activate"])
            body: dict[str, Any] = {"reason": "torture"}
            if what == "activate":
                connection.request("GET", "/models")
                listed = json.loads(connection.getresponse().read())["versions"]
                body["version"] = self._choose.choice(listed)["version"]
            began = time.monotonic()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/models/mlp/{what}", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status == 200:
                active = int(answer["active"])
                self.events.append(Event(what, began, time.monotonic(), active))
            elif response.status not in (404, 409):  # pruned, overtaken, or nothing to go back to
                self.wrong.append(f"{what}: {response.status} {answer}")
        connection.close()


def swap_under_load(
    zygote: Zygote,
    folder: Path,
    swaps: int,
    seed: int,
    bugs: Sequence[str] = (),
    *,
    pause_seconds: float = 0.03,
    progress: Callable[[str], None] = lambda text: None,
) -> Swapped:
    """Change what serves `swaps` times while clients predict; stop at the first wrong answer.

    Args:
        zygote: Forks the daemon.
        folder: For all files.
        swaps: How many.
        seed: Of the learner's and the operator's choices.
        bugs: Planted in the daemon.
        pause_seconds: Longest time between two candidates.
        progress: Told a line from time to time.
    """
    expected = pool(folder / "pool")
    store, journal = folder / "var", folder / "journal"
    order = {"pool": str(folder / "pool"), "versions": str(store / "versions")}
    order |= {"journal": str(journal), "seed": seed, "pause_seconds": pause_seconds}
    learner = ("tests.torture.swap_learner", json.dumps(order))
    daemon = ForkedDaemon(zygote, folder / "home", *bugs, store=store, learner=learner)
    found, started, stop = Swapped(), time.monotonic(), threading.Event()
    with daemon:
        port = daemon.client.base_url.port
        assert port is not None
        clients = [Client(port, n, expected, stop) for n in range(_CLIENTS)]
        operator = Operator(port, seed, stop, 12 * pause_seconds)
        wait_for(daemon.learner_up, "the learner")
        for thread in (*clients, operator):
            thread.start()
        readings = _watch(daemon, clients, swaps, progress)
        stop.set()
        for thread in (*clients, operator):
            thread.join(30)
        _read_metrics(daemon, found)
    requests = sorted(request for client in clients for request in client.answered)
    events = [Event(*json.loads(line)) for line in journal.read_text().splitlines()]
    _compare(found, requests, events + operator.events)
    found.failed = sum(client.failed for client in clients)
    found.torn = sum(client.torn for client in clients)
    _measure_memory(found, readings)
    found.seconds = time.monotonic() - started
    found.broken += [text for who in (*clients, operator) for text in who.wrong][:10]
    return found


@dataclass
class _Reading:
    swaps: int
    resident_bytes: int
    descriptors: int


def _metrics(daemon: ForkedDaemon) -> dict[str, float]:
    lines = daemon.client.get("/metrics").text.splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def _swaps(metrics: dict[str, float]) -> dict[str, int]:
    name = "ffedge_model_swaps_total"
    results = ("swapped", "rolled_back", "activated", "failed")
    return {result: int(metrics[f'{name}{{result="{result}"}}']) for result in results}


def _watch(
    daemon: ForkedDaemon, clients: list[Client], swaps: int, progress: Callable[[str], None]
) -> list[_Reading]:
    """Until there were so many swaps, or something is wrong."""
    readings: list[_Reading] = []
    process, told, moved = psutil.Process(daemon.process.pid), 0, time.monotonic()
    while not any(client.wrong for client in clients):
        results = _swaps(_metrics(daemon))
        done = sum(results.values()) - results["failed"]
        if readings and done > readings[-1].swaps:
            moved = time.monotonic()
        assert time.monotonic() - moved < 30, f"no swap in 30 s: {daemon.log.read_text()[-2000:]}"
        readings.append(_Reading(done, process.memory_info().rss, process.num_fds()))
        answered = sum(len(client.answered) for client in clients)
        if done >= swaps and answered >= PREDICTIONS_A_SWAP * swaps:
            break
        if done >= told + 500:
            told = done
            progress(f"{done} swaps, {answered} predictions")
        time.sleep(0.1)
    return readings


def _read_metrics(daemon: ForkedDaemon, found: Swapped) -> None:
    metrics = _metrics(daemon)
    found.results = _swaps(metrics)
    found.swaps = sum(found.results.values()) - found.results["failed"]
    prefix = "ffedge_swap_duration_seconds"
    count = metrics[f"{prefix}_count"]
    found.pauses_below_1_ms = metrics[f'{prefix}_bucket{{le="0.001"}}'] / count
    found.pauses_above_2_ms = int(count - metrics[f'{prefix}_bucket{{le="0.002"}}'])
    for name, value in metrics.items():
        if name.startswith('ffedge_gate_decisions_total{decision="refused"') and value:
            found.refused[name.split('"')[3]] = int(value)


def _compare(found: Swapped, requests: list[Request], events: list[Event]) -> None:
    """Which requests met a change, and what the others were answered by."""
    events.sort(key=lambda event: event.began)
    known = {1} | {event.active for event in events}
    # Changes that overlap are one, after which any of them may have been the last.
    groups: list[tuple[float, float, set[int]]] = [(0.0, 0.0, {1})]
    for event in events:
        if event.began <= groups[-1][1]:
            before = groups[-1]
            groups[-1] = (before[0], max(before[1], event.ended), before[2] | {event.active})
        else:
            groups.append((event.began, event.ended, {event.active}))
    during, outside, place = [], [], 0
    for request in requests:
        while place + 1 < len(groups) and groups[place + 1][1] < request.began:
            place += 1
        met = groups[place][1] >= request.began or (
            place + 1 < len(groups) and groups[place + 1][0] <= request.ended
        )
        (during if met else outside).append((request.ended - request.began) * 1e3)
        if request.version not in known:
            found.unknown += 1
        if not met and request.version not in groups[place][2]:
            found.stale += 1
    found.predictions = len(requests)
    if during:
        found.p50_during, found.p99_during = _quantiles(during)
    if outside:
        found.p50_else, found.p99_else = _quantiles(outside)
    times = [(e.ended - e.began) * 1e3 for e in events if e.what == "swapped"]
    found.first_swaps = float(np.median(times[:50]))
    found.hundredth_swaps = float(np.median(times[75:125] or times))
    found.last_swaps = float(np.median(times[-50:]))


def _quantiles(values: list[float]) -> tuple[float, float]:
    return float(np.quantile(values, 0.5)), float(np.quantile(values, 0.99))


def _measure_memory(found: Swapped, readings: list[_Reading]) -> None:
    # By then imports, caches and the allocator's pools have grown as far as they do.
    warm = [reading for reading in readings if reading.swaps >= readings[-1].swaps // 2]
    if len({reading.swaps for reading in warm}) < 3:
        return
    swaps = np.array([reading.swaps for reading in warm], float)
    resident = np.array([reading.resident_bytes for reading in warm], float)
    found.resident_growth_kib = float(np.polyfit(swaps, resident, 1)[0] * 1000 / 1024)
    found.resident_mib = resident[-1] / 2**20
    descriptors = [reading.descriptors for reading in warm]
    found.descriptors = (min(descriptors), max(descriptors))
