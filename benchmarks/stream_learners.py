"""What learns a stream: the daemon's own learner, and what it is compared with.

| learner | what it is |
| --- | --- |
| `ours` | `daemon.learning.learner.Learner`, from a real store, with the daemon's default settings |
| `fine-tuning` | the same engine, new samples alone, nothing remembered |
| `newest` | the same engine, replay of the newest samples: the daemon's memory until issue 6 |
| `reservoir` | the same engine, replay of a reservoir without regard to class |
| `fresh` | `newest`, begun where the world last changes: what could be hoped for after it |
| `gdumb` | the same engine, begun anew wherever it is judged, from a greedy class-balanced memory |
| `bp-balanced` | float32 back-propagation, replay of a class-balanced reservoir |

All get the same samples in the same blocks, and a block's steps are as many for all, of one batch size, with
one share of new samples and one learning rate: the daemon's settings. But for `ours` a softmax ranges over all
class places, as it did until issue 6; and `gdumb` takes, wherever it is judged, as many steps as the others
have taken until then, so all in all more.
"""  # noqa: E501 - a table

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.backprop.method import Backprop
from benchmarks.samples import Samples
from benchmarks.stream_memories import Balanced, Greedy, Memory, Newest, Nothing, Reservoir
from benchmarks.trial import Trial
from daemon.config import LearnerSettings
from daemon.learning.learner import Learner
from daemon.store import SampleReader
from engines import Weights, open_predict_engine, open_train_engine
from models import ModelSpec

OURS = "ours"
FRESH = "fresh"
NEWEST = "newest"
GDUMB = "gdumb"
_ANSWERED_ROWS = 1000


class StreamLearner(ABC):
    """Learns block by block, and can be asked at any time."""

    steps = 0
    alarms: tuple[int, ...] = ()  # samples learned when a drift was noticed

    @abstractmethod
    def learn(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Learn the next block.

        Args:
            x: float32 `[block, *shape]`.
            labels: int64 `[block]`, classes.
        """

    @abstractmethod
    def answers(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class of each sample, int64 `[rows]`; -1 before anything was learned."""

    @abstractmethod
    def settle(self) -> None:
        """Make ready to be judged."""


class Ours(StreamLearner):
    """The daemon's learner; it reads its blocks from the store itself.

    Args:
        spec: The network.
        settings: The daemon's.
        folder: Of the store.
        holdout_samples: As `gate.max_samples`.
    """

    def __init__(
        self, spec: ModelSpec, settings: LearnerSettings, folder: Path, holdout_samples: int
    ) -> None:
        self.reader = SampleReader(folder, spec)
        self.learner = Learner(
            spec,
            lambda: open_train_engine(spec, seed=settings.seed, recipe=settings.recipe()),
            open_predict_engine("torch").open,
            self.reader,
            settings,
            holdout_samples=holdout_samples,
            checkpoint=folder / "checkpoint.safetensors",
        )
        self._samples = 0

    def learn(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """See `StreamLearner.learn`."""
        block = self.learner.learn_block()
        if block.samples != len(labels):
            raise RuntimeError(f"the learner took {block.samples} samples of {len(labels)}")
        self.steps = self.learner.steps
        self._samples += block.samples
        self.alarms += tuple(self._samples for n in self.learner.notes if n.kind == "drift")
        self.learner.notes.clear()

    def answers(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """See `StreamLearner.answers`."""
        return answers_of(self.learner.export(version=1, parent=None), x)

    def settle(self) -> None:
        """See `StreamLearner.settle`."""


class Network(ABC):
    """A network that a baseline moves."""

    @abstractmethod
    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Take one step on a batch, labels as class places."""

    @abstractmethod
    def answers(self, x: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
        """Class place of each sample, among the first `classes`."""


class ForwardForward(Network):
    """The daemon's engine.

    Args:
        spec: The network.
        settings: The daemon's.
        fitted: What the standardisation is taken from, float32 `[n, *shape]`.
    """

    def __init__(
        self, spec: ModelSpec, settings: LearnerSettings, fitted: NDArray[np.float32]
    ) -> None:
        self._settings = settings
        self._engine = open_train_engine(spec, seed=settings.seed, recipe=settings.recipe())
        self._engine.standardize_from(fitted)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """See `Network.step`."""
        self._engine.train_step(
            x,
            labels,
            learning_rate=self._settings.learning_rate,
            look_ahead_weight=self._settings.look_ahead_weight,
        )

    def answers(self, x: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
        """See `Network.answers`."""
        places = tuple(range(classes))
        weights = self._engine.export(classes=places, version=1, parent=None, last_seq=0)
        return answers_of(weights, x)


class BackPropagation(Network):
    """Float32 back-propagation of the same widths, with torch's fused Adam.

    Args:
        spec: The network.
        settings: The daemon's.
        fitted: What the standardisation is taken from, float32 `[n, *shape]`.
    """

    def __init__(
        self, spec: ModelSpec, settings: LearnerSettings, fitted: NDArray[np.float32]
    ) -> None:
        trial = Trial(
            "bp-fp32",
            spec.name,
            "",
            epochs=1,
            seed=settings.seed,
            learning_rate=settings.learning_rate,
        )
        names = tuple(map(str, range(spec.max_classes)))
        self._method = Backprop(
            trial, spec, Samples(fitted, np.zeros(len(fitted), np.int64), names)
        )
        self._method.start_step(0.0)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """See `Network.step`."""
        self._method.step(x, labels)

    @torch.no_grad()
    def answers(self, x: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
        """See `Network.answers`."""
        network = self._method.network.eval()
        found: NDArray[np.int64] = (
            network(self._method.input(x))[:, :classes].argmax(1).numpy().astype(np.int64)
        )
        return found


OpenNetwork = Callable[[ModelSpec, LearnerSettings, NDArray[np.float32]], Network]


class Baseline(StreamLearner):
    """A network with a memory.

    Args:
        spec: The network.
        settings: The daemon's.
        memory: What is remembered.
        open_network: Builds what is moved; called once, with the first block, and by `anew` again.
        anew: Learn nothing in between; begin anew from memory alone wherever it is judged.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: LearnerSettings,
        memory: Memory,
        open_network: OpenNetwork = ForwardForward,
        *,
        anew: bool = False,
    ) -> None:
        self._spec = spec
        self._open_network = open_network
        self._settings = settings
        self._memory = memory
        self._anew = anew
        self._network: Network | None = None
        self._x = np.zeros((0, *spec.input_shape), dtype=np.float32)
        self._places: dict[int, int] = {}  # of each class, in order of arrival
        self._known = 0  # of them, by the network
        self._due = 0  # steps that the others have taken
        self._first = 0  # samples in the first block

    def learn(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """See `StreamLearner.learn`."""
        settings = self._settings
        begun = len(self._x)
        self._x = np.concatenate([self._x, x])
        self._first = self._first or len(x)
        places = [self._places.setdefault(label, len(self._places)) for label in labels.tolist()]
        for row, place in enumerate(places, begun):
            self._memory.add(row, place)
        steps = -(-settings.steps_per_block * len(x) // settings.block_samples)
        self._due += steps
        if self._anew:
            return
        self._network = self._network or self._opened()
        self._known = len(self._places)
        replayed = bool(self._memory.rows)
        share = settings.new_ratio if replayed else 1.0
        fresh = max(1, round(settings.batch_samples * share))
        for _ in range(steps):
            draw = np.random.default_rng([settings.seed, self.steps])
            new = draw.integers(len(x), size=fresh)
            x_old, old = self._replay(draw, settings.batch_samples - fresh)
            mixed = np.concatenate([np.take(places, new), old])
            self._network.step(np.concatenate([x[new], x_old]), mixed)
            self.steps += 1

    def _opened(self) -> Network:
        return self._open_network(self._spec, self._settings, self._x[: self._first])

    def _replay(
        self, draw: np.random.Generator, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not count:
            return self._x[:0], np.zeros(0, dtype=np.int64)
        chosen = draw.integers(len(self._memory.rows), size=count)
        return self._x[np.take(self._memory.rows, chosen)], np.take(self._memory.labels, chosen)

    def answers(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """See `StreamLearner.answers`."""
        if self._network is None:
            return np.full(len(x), -1, dtype=np.int64)
        found = self._network.answers(x, self._known)
        return np.array([*self._places], dtype=np.int64)[found]

    def settle(self) -> None:
        """See `StreamLearner.settle`."""
        if not self._anew:
            return
        self._network = self._opened()
        self._known = len(self._places)
        for step in range(self._due):
            draw = np.random.default_rng([self._settings.seed, step])
            self._network.step(*self._replay(draw, self._settings.batch_samples))
        self.steps += self._due


def _baseline(
    memory: type[Memory], open_network: OpenNetwork = ForwardForward, *, anew: bool = False
) -> Callable[[ModelSpec, LearnerSettings], StreamLearner]:
    def build(spec: ModelSpec, settings: LearnerSettings) -> StreamLearner:
        held = memory(settings.replay_samples, settings.seed)
        return Baseline(spec, settings, held, open_network, anew=anew)

    return build


BASELINES: Mapping[str, Callable[[ModelSpec, LearnerSettings], StreamLearner]] = {
    "fine-tuning": _baseline(Nothing),
    NEWEST: _baseline(Newest),
    "reservoir": _baseline(Reservoir),
    GDUMB: _baseline(Greedy, anew=True),
    "bp-balanced": _baseline(Balanced, BackPropagation),
}
LEARNER_NAMES = (OURS, *BASELINES)


def answers_of(weights: Weights, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class that a version answers for each sample, int64 `[rows]`; -1 where it knows none."""
    classes = np.array([*weights.classes, -1], dtype=np.int64)
    with open_predict_engine("torch").open(weights) as engine:
        found = [
            engine.predict(x[start : start + _ANSWERED_ROWS]).class_index
            for start in range(0, len(x), _ANSWERED_ROWS)
        ]
    return classes[np.concatenate(found)]
