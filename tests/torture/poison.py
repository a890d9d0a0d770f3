"""Poison: what a daemon serves that is taught the right digits, then wrong ones.

A run is one daemon with its real learner, over HTTP: scikit-learn's digits until a version has
passed its probation, an attack, digits again. Afterwards every version that served is asked, from
its file, for digits that nobody posted, and for the daemon's own hold-out as it was when that
version began to serve: with the labels that it has there, which is what the gate promises of, and
with the labels that are true, which no gate can know.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from daemon.store.schema import DATABASE_NAME
from engines import open_predict_engine, weights_from_bytes
from tests.running import RunningDaemon, wait_for
from tests.torture.processes import Forked, Zygote

# A digit learns from 64 features; a version proves itself within two blocks.
SETTINGS: dict[str, object] = {
    "learner__block_samples": 64,
    "learner__steps_per_block": 24,
    "learner__learning_rate": 0.003,
    "learner__max_wait_seconds": 0.5,
    "learner__niceness": 0,
    "gate__probation_samples": 100,
    "store__holdout_ratio": 0.3,  # so that a sample is less than a point
    "gate__keep_versions": 10_000,  # so that each can be asked afterwards
}
GATE_OFF: dict[str, object] = {"gate__margin": 1.0, "gate__min_samples": 1}
_DAEMON = "daemon.__main__:main"
_CHUNK = 64
_SETTLED_SECONDS = 20.0
_TEST, _HEALTHY, _ATTACK, _AGAIN = 405, 900, 300, 192
_THREE, _EIGHT = 3, 8

Sample = tuple[Any, int, int]  # features, the label that is posted, the true one


@dataclass
class Poisoned:
    """What a run found.

    Args:
        attack: Of `ATTACKS`.
        seed: Of the order of the digits.
        served: Versions that served, the untrained one not counted.
        decisions: Of the gate, by reason; accepted ones by "".
        rollbacks: By probation.
        refused_posts: Posts that were refused, as those that are no numbers must be.
        non_finite: Served versions with a value that is no number.
        failed_predictions: Predictions that were not answered.
        restarts: Of the learner.
        holdout: Samples in the daemon's hold-out at the end.
        healthy_accuracy: On the test set, of the last good version before the attack.
        final_accuracy: On the test set, of what serves at the end.
        worst_holdout_drop: Most that a serving version's hold-out accuracy lay below that of the
            last good one, both on the hold-out of that moment, a reading once, as the gate counts;
            from the attack on: before, it is so small that one sample is more than a point.
        worst_copies_drop: The same with each as often as it was posted.
        worst_true_drop: As the first with the true labels.
        worst_test_drop: The same on the test set.
        seconds: Of the run.
    """

    attack: str
    seed: int
    served: int = 0
    decisions: dict[str, int] = field(default_factory=dict)
    rollbacks: int = 0
    refused_posts: int = 0
    non_finite: int = 0
    failed_predictions: int = 0
    restarts: int = 0
    holdout: int = 0
    healthy_accuracy: float = 0.0
    final_accuracy: float = 0.0
    worst_holdout_drop: float = 0.0
    worst_copies_drop: float = 0.0
    worst_true_drop: float = 0.0
    worst_test_drop: float = 0.0
    seconds: float = 0.0


# --- attacks ------------------------------------------------------------------------------------


def _flipped(digits: Digits, rng: np.random.Generator) -> Iterator[Sample]:
    """Every label wrong."""
    for x, y in digits:
        yield x, (y + 1) % 10, y


def _flood(digits: Digits, rng: np.random.Generator) -> Iterator[Sample]:
    """One class, rightly labelled, again and again."""
    ones = [x for x, y in digits if y == 1]
    for number in range(len(digits)):
        yield np.clip(ones[number % len(ones)] + rng.integers(-1, 2, 64), 0, 16), 1, 1


def _extreme(digits: Digits, rng: np.random.Generator) -> Iterator[Sample]:
    """Features at the ends of float32, or no numbers, which are refused."""
    worst = rng.permutation([3.4e38, -3.4e38, 1e30, 1e-40, float("nan"), float("inf")])
    for number, (x, y) in enumerate(digits):
        spoilt = x.copy()
        spoilt[rng.integers(64, size=8)] = worst[number * len(worst) // len(digits)]
        yield spoilt, y, y


def _stealth(digits: Digits, rng: np.random.Generator) -> Iterator[Sample]:
    """Threes slip in as eights, a few among many right ones; then threes come as threes."""
    turn = 2 * len(digits) // 3
    for number, (x, y) in enumerate(digits):
        if number < turn:
            yield x, _EIGHT if y == _THREE else y, y
    threes = [x for x, y in digits if y == _THREE]
    for number in range(turn):
        yield threes[number % len(threes)], _THREE, _THREE


def _right(digits: Digits, rng: np.random.Generator) -> Iterator[Sample]:
    """Right samples, for a learner that goes wrong by itself."""
    for x, y in digits:
        yield x, y, y


Digits = list[tuple[np.ndarray, int]]
ATTACKS: dict[str, Callable[[Digits, np.random.Generator], Iterator[Sample]]] = {
    "nan": _extreme,
    "divergence": _right,
    "broken": _right,
    "flipped": _flipped,
    "flood": _flood,
    "stealth": _stealth,
}


# --- a run --------------------------------------------------------------------------------------


class _Daemon(RunningDaemon):
    """Forked, so that it is there at once; its learner is started as ever."""

    def __init__(self, zygote: Zygote, folder: Path, settings: dict[str, object]) -> None:
        super().__init__(folder, 64, '[power]\nprovider = "none"\n')
        self._zygote, self._settings = zygote, settings
        self._target = _DAEMON
        self.environment: dict[str, str] = {}

    def spawn(self) -> Forked:  # type: ignore[override]  # all that the tests use of a Popen
        """See `RunningDaemon.spawn`."""
        named = {f"FFEDGE_{key.upper()}": str(value) for key, value in self._settings.items()}
        arguments = ["serve", "--config", str(self.config)]
        return self._zygote.fork(self._target, arguments, self.log, named | self.environment)

    def start(self) -> _Daemon:
        """See `RunningDaemon.start`; with its learner."""
        super().start()
        wait_for(self.learner_up, "the learner", 60)
        return self

    def again(self, target: str = _DAEMON, **settings: object) -> None:
        """Kill it and start it, with other settings or as another program."""
        self.__exit__()
        self._target, self._settings = target, self._settings | settings
        self.start()

    def kill_group(self) -> None:
        """See `RunningDaemon.kill_group`."""
        self.process.kill_group()  # type: ignore[attr-defined]

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        found = self.log.read_text().splitlines()
        return [json.loads(line) for line in found if line.startswith("{")]


class _Run:
    def __init__(self, daemon: _Daemon, found: Poisoned, test: Digits) -> None:
        self._daemon, self._found, self._test = daemon, found, test
        self.sent: dict[str, Sample] = {}  # by id
        self.posted: list[tuple[float, int]] = []  # when, and the last seq that was there then

    def teach(self, samples: Iterator[Sample], until: Callable[[], bool] = lambda: False) -> None:
        """Post in chunks, each learned before the next comes, as a slow sensor would."""
        chunk: list[Sample] = []
        for sample in samples:
            chunk.append(sample)
            if len(chunk) == _CHUNK:
                self._post(chunk)
                chunk = []
                if until():
                    return
        if chunk:
            self._post(chunk)

    def _post(self, chunk: list[Sample]) -> None:
        body, names = [], []
        for x, label, _ in chunk:
            names.append(f"n-{len(self.sent) + len(names)}")
            body.append({"id": names[-1], "x": [float(v) for v in x], "label": label})
        self._ask()
        before = self._jobs()
        answer = self._daemon.client.post(
            "/samples",
            content=json.dumps({"samples": body}),
            headers={"content-type": "application/json"},
        )
        if answer.status_code != 201:
            assert 400 <= answer.status_code < 500, answer.text
            self._found.refused_posts += 1
            return
        self.sent |= {
            n: (np.asarray(x), *labels) for n, (x, *labels) in zip(names, chunk, strict=True)
        }
        self.posted.append((time.time(), len(self.sent)))
        deadline = time.monotonic() + _SETTLED_SECONDS
        while time.monotonic() < deadline and not self._learned(before):
            time.sleep(0.1)

    def _learned(self, before: dict[str, str]) -> bool:
        """Whether a job has begun since, and all have ended; the first block has to fill first."""
        stored = self._daemon.metric("ffedge_samples_stored") or 0
        trained = stored - (self._daemon.metric("ffedge_samples_holdout") or 0)
        if trained < SETTINGS["learner__block_samples"]:
            return True
        jobs = self._jobs()
        backlog = self._daemon.metric("ffedge_learner_backlog_samples")
        ended = set(jobs.values()) <= {"completed", "failed"}
        return jobs.keys() != before.keys() and ended and backlog == 0

    def _jobs(self) -> dict[str, str]:
        jobs = self._daemon.client.get("/train?limit=5").json()["jobs"]
        return {job["job"]: job["state"] for job in jobs}

    def _ask(self) -> None:
        samples = [{"x": [float(v) for v in x]} for x, _ in self._test[:8]]
        answer = self._daemon.client.post("/predict", json={"samples": samples})
        self._found.failed_predictions += answer.status_code != 200


def poison(
    zygote: Zygote, folder: Path, attack: str, seed: int, settings: dict[str, object] | None = None
) -> Poisoned:
    """One run.

    Args:
        zygote: Forks the daemon.
        folder: For it; made.
        attack: Of `ATTACKS`; several, joined by "+", one after the other.
        seed: Shuffles the digits.
        settings: Beside `SETTINGS`, of the daemon; `GATE_OFF` for a control.
    """
    folder.mkdir()
    found, started = Poisoned(attack, seed), time.monotonic()
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    digits = [(x[i], int(y[i])) for i in rng.permutation(len(x))]
    parts = np.cumsum([_TEST, _HEALTHY, _ATTACK, _AGAIN])
    test, healthy, attacked, again = (
        digits[start:end] for start, end in zip([0, *parts[:-1]], parts, strict=True)
    )
    daemon = _Daemon(zygote, folder, SETTINGS | (settings or {}))
    run = _Run(daemon, found, test)
    with daemon:
        run.teach(_right(healthy, rng))
        began = time.time()
        if attack == "divergence":
            daemon.again(learner__learning_rate=1.0)
        elif attack == "broken":
            daemon.environment["BROKEN_VALUE"] = ("nan", "inf", "3e38")[seed % 3]
            daemon.again(target="tests.torture.broken_learner:serve")
        kinds = attack.split("+")
        for place, kind in enumerate(kinds):
            run.teach(ATTACKS[kind](attacked[place :: len(kinds)], rng))
        if attack == "broken":
            daemon.again()
        run.teach(_right(again, rng))
        found.restarts = int(daemon.metric("ffedge_learner_restarts_total") or 0)
    _audit(daemon, run, found, test, began)
    found.seconds = time.monotonic() - started
    return found


# --- the audit ----------------------------------------------------------------------------------


class _Versions:
    """What each version that served answers, asked from its file."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "versions"
        self._open = open_predict_engine("torch").open

    def finite(self, version: int) -> bool:
        """Whether every value of a version is a number."""
        arrays = self._weights(version).arrays.values()
        return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")

    def right(self, version: int, samples: Digits) -> float:
        """Share of right answers."""
        weights = self._weights(version)
        x = np.array([features for features, _ in samples], np.float32)
        with self._open(weights) as engine:
            answers = [(*weights.classes, None)[c] for c in engine.predict(x).class_index]
        return float(np.mean([a == label for a, (_, label) in zip(answers, samples, strict=True)]))

    def _weights(self, version: int) -> Any:
        return weights_from_bytes((self._folder / f"{version}.safetensors").read_bytes())


def _audit(daemon: _Daemon, run: _Run, found: Poisoned, test: Digits, began: float) -> None:
    with closing(sqlite3.connect(daemon.store / DATABASE_NAME)) as connection:
        rows = connection.execute("SELECT seq, id FROM samples WHERE holdout AND NOT retired")
        holdout = [(seq, *run.sent[name]) for seq, name in rows]
    found.holdout = len(holdout)
    versions, serves, good = _Versions(daemon.store), 1, None
    for line in daemon.lines():
        when = datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp()
        swapped = False
        match line["message"]:
            case "gate decision":
                reason = line["reason"] or ""
                found.decisions[reason] = found.decisions.get(reason, 0) + 1
                if line["decision"] == "accepted":
                    serves, swapped = int(line["version"]), True
            case "version is good":
                good = int(line["version"])
                if when < began:
                    found.healthy_accuracy = versions.right(good, test)
            case "version changed":
                serves, swapped = int(line["to"]), True
                found.rollbacks += line["by"] == "probation"
        if not swapped:
            continue
        found.served += 1
        found.non_finite += not versions.finite(serves)
        if good is None or serves == good or when < began:
            continue
        there = max((last for time, last in run.posted if time <= when), default=0)
        then = [sample for seq, *sample in holdout if seq <= there]
        readings = {(x.tobytes(), posted): (x, posted, true) for x, posted, true in then}.values()
        asked = {
            "worst_holdout_drop": [(x, posted) for x, posted, _ in readings],
            "worst_copies_drop": [(x, posted) for x, posted, _ in then],
            "worst_true_drop": [(x, true) for x, _, true in readings],
            "worst_test_drop": test,
        }
        for name, samples in asked.items():
            drop = versions.right(good, samples) - versions.right(serves, samples)
            setattr(found, name, max(getattr(found, name), round(drop, 6)))
    found.final_accuracy = versions.right(serves, test)
