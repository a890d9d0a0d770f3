"""A learner that learns nothing and proposes without end, from a pool of networks.

    python -m tests.torture.swap_learner ORDER

Version n is network n modulo the pool, so that whoever sees an answer knows whose it must be. What
it proposes is good, worse, damaged, not finite or answers otherwise than it says; what is accepted
passes its probation, fails it, or is replaced before. Each change that it causes goes into the
journal: from when to when it may have happened, and which version serves after it.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from daemon.messages import (
    Begin,
    JobStarted,
    Judged,
    Passed,
    Probed,
    Proposed,
    Retreated,
    Serves,
    Started,
    ToLearner,
    send,
)
from daemon.serving.gate import Scores
from engines import Weights, weights_digest, weights_from_bytes, weights_to_bytes

_GOOD, _WORSE = Scores(100, 80, 80, 90), Scores(100, 90, 90, 70)
_KINDS = {"good": 14, "worse": 2, "damaged": 1, "not finite": 1, "other canary": 1}
_FATES = {"pass": 4, "fail": 4, "nothing": 4}
_PATIENCE_SECONDS = 10.0


class SwapLearner:
    """Talks to the server as `messages.py` says.

    Args:
        pool: Networks to propose.
        versions: Folder of version files.
        journal: File for changes.
        seed: Of kinds, fates and pauses.
        pause_seconds: Longest time between two candidates.
    """

    def __init__(
        self, pool: list[Weights], versions: Path, journal: Path, seed: int, pause_seconds: float
    ) -> None:
        self._pool, self._versions = pool, versions
        self._journal = journal.open("a")
        self._choose = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._inbox: queue.Queue[ToLearner] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            self._inbox.put(msgspec.json.decode(line, type=ToLearner))
        self._inbox.put(None)  # type: ignore[arg-type]

    def run(self) -> None:
        """Propose until the server goes."""
        begin = self._hear(_PATIENCE_SECONDS)
        assert isinstance(begin, Begin)
        self._active, version = begin.active[0], begin.next_version
        self._say(Started(False, 0, 0))
        while True:
            self._wait(self._choose.uniform(0, self._pause_seconds))
            self._propose(version)
            version += 1

    def _propose(self, version: int) -> None:
        kind = self._drawn(_KINDS)
        weights = self._pool[version % len(self._pool)]
        weights = dataclasses.replace(weights, version=version, parent=self._active)
        if kind == "not finite":
            weights = _with_element(weights, "units.0.bias", np.nan)
        elif kind == "other canary":
            weights = _with_element(weights, "canary.goodness", 1e3)
        content = bytearray(weights_to_bytes(weights))
        if kind == "damaged":
            content[self._choose.randrange(len(content) // 2, len(content))] ^= 1
        (self._versions / f"{version}.safetensors").write_bytes(content)
        self._say(JobStarted("samples", 0))
        began = time.monotonic()
        self._say(Proposed(version, weights_digest(weights), _WORSE if kind == "worse" else _GOOD))
        judged = self._until(Judged)
        if judged is None or not judged.accepted:
            return
        self._note("swapped", began, version)
        self._active = version
        fate = self._drawn(_FATES)
        began = time.monotonic()
        if fate == "pass":
            self._say(Probed(version, 200, 190, 180, 3, 0))
            self._until(Passed)
        elif fate == "fail":
            self._say(Probed(version, 64, 20, 60, 42, 0))
            if (serves := self._until(Serves)) is not None:
                self._note("rolled back", began, serves.active[0])

    def _until(self, kind: type[Any]) -> Any:
        """The next message of a kind, or None where an operator's change has come before."""
        while True:
            message = self._hear(_PATIENCE_SECONDS)
            self._obey(message)
            if isinstance(message, kind):
                return message
            if isinstance(message, Serves) and kind is Passed:
                return None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self._obey(self._inbox_get(left))
            except queue.Empty:
                return

    def _obey(self, message: ToLearner) -> None:
        if isinstance(message, Serves):
            self._active = message.active[0]
            if message.retreat:
                self._say(Retreated(message.change))

    def _hear(self, seconds: float) -> ToLearner:
        try:
            return self._inbox_get(seconds)
        except queue.Empty:
            raise SystemExit(f"nothing heard in {seconds} s") from None

    def _inbox_get(self, seconds: float) -> ToLearner:
        message = self._inbox.get(timeout=seconds)
        if message is None:
            raise SystemExit(0)
        return message

    def _note(self, what: str, began: float, active: int) -> None:
        self._journal.write(json.dumps([what, began, time.monotonic(), active]) + "\n")
        self._journal.flush()

    def _say(self, message: msgspec.Struct) -> None:
        send(sys.stdout.buffer, message)

    def _drawn(self, weighted: dict[str, int]) -> str:
        return self._choose.choices([*weighted], [*weighted.values()])[0]


def _with_element(weights: Weights, name: str, value: float) -> Weights:
    array = np.array(weights.arrays[name])
    array.flat[0] = value
    return dataclasses.replace(weights, arrays={**weights.arrays, name: array})


def main() -> None:
    """Read the order from the command line."""
    order = json.loads(sys.argv[1])
    pool = [weights_from_bytes(path.read_bytes()) for path in sorted(Path(order["pool"]).iterdir())]
    learner = SwapLearner(
        pool,
        Path(order["versions"]),
        Path(order["journal"]),
        order["seed"],
        order["pause_seconds"],
    )
    learner.run()


if __name__ == "__main__":
    main()
