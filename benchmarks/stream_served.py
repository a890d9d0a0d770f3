"""What is served while a learner learns: the gate's real decisions, beside serving everything.

After each block the learner proposes what it has, as the daemon's does where samples come slower
than it learns. One learner is judged by several gates side by side, since learning does not depend
on the verdict. Versions are answered for in this process, and there is no probation here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stream_learners import answers_of
from benchmarks.stream_scores import recovered
from daemon.config import GateSettings
from daemon.learning.holdout import Holdout
from daemon.learning.learner import Learner
from daemon.serving.gate import becomes_best, judge
from daemon.store import SampleReader
from engines import Weights, open_predict_engine

_GATES = {
    "gate": GateSettings(),
    "gate that follows drift": GateSettings(follow_drift=True),
    "no gate": None,
}


def _nobody() -> None:
    """Nobody waits for a sign of life."""


class Arm:
    """One gate, and what it lets serve.

    Args:
        settings: The gate's; None: everything serves.
        first: Serves until the first candidate is accepted.
    """

    def __init__(self, settings: GateSettings | None, first: Weights) -> None:
        self._settings = settings
        self._incumbent = self._best = first
        self.decisions: list[str] = []
        self.right: list[NDArray[np.bool_]] = []

    def ask(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Answer samples that nobody has learned from yet."""
        self.right.append(answers_of(self._incumbent, x) == labels)

    def consider(self, candidate: Weights, holdout: Holdout, change_seq: int | None) -> None:
        """Let a candidate serve, or not; as `Learner.compare` and `Promotion` do between them."""
        if self._settings is None:
            self._incumbent = candidate
            return
        open_predict = open_predict_engine("torch").open
        after_seq = (change_seq or 0) if self._settings.follow_drift else 0
        scores = holdout.compare(
            candidate, self._incumbent, [self._best], open_predict, _nobody, after_seq=after_seq
        )
        with open_predict(candidate) as engine:
            decision = judge(candidate, self._incumbent.version, engine, scores, self._settings)
        self.decisions.append(decision.reason or "accepted")
        if decision.accepted:
            self._incumbent = candidate
            if becomes_best(scores):
                self._best = candidate


class ServedArms:
    """Several gates beside one learner.

    Args:
        learner: Has learned nothing yet.
        reader: Its samples.
    """

    def __init__(self, learner: Learner, reader: SampleReader) -> None:
        self._learner = learner
        self._holdout = Holdout(reader, GateSettings().max_samples)
        self._version = 1
        first = learner.export(version=1, parent=None)
        self._arms = {name: Arm(settings, first) for name, settings in _GATES.items()}

    def ask(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Let what serves answer a block before it is learned."""
        for arm in self._arms.values():
            arm.ask(x, labels)

    def propose(self) -> None:
        """Let every gate judge what is learned by now."""
        self._version += 1
        candidate = self._learner.export(version=self._version, parent=self._version - 1)
        for arm in self._arms.values():
            arm.consider(candidate, self._holdout, self._learner.change_seq)

    def to_json(self, change: int | None, fresh_level: float | None) -> dict[str, Any]:
        """For the record: per gate its decisions, and how right its answers were.

        Args:
            change: Samples before the world changed; None: it does not.
            fresh_level: What a learner that begins at the change reaches, a fraction.
        """
        return {name: _figures(arm, change, fresh_level) for name, arm in self._arms.items()}


def _figures(arm: Arm, change: int | None, fresh_level: float | None) -> dict[str, Any]:
    right = np.concatenate(arm.right)
    return {
        "accuracy": float(right.mean()),
        "decisions": arm.decisions,
        "blocks": [[len(block), int(block.sum())] for block in arm.right],
        **({} if change is None else recovered(right, change, fresh_level)),
    }
