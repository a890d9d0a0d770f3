"""What the learner does with samples, as plain calls: learn a block, propose a candidate, resume.

Samples are learned in order of arrival, in blocks. For one block:

    1. predict all of it, score, and only then (progressive validation)
    2. take `steps_per_block` steps; each mixes new samples with ones drawn from memory (replay)

Which rows a step takes depends on the seed and the step's number alone, and a full block on the
order of the samples, so learning full blocks again from the checkpoint gives the same bits, as
long as nothing that was learned since has been relabelled, withdrawn, found damaged or removed:
that is not met again. (Where a block that waited too long is cut short is up to the clock.) A
sample that no longer counts has left memory by the next block. A candidate is an export of the
network as it stands: proposing one changes nothing in what is learned next.

Where memory runs out in a step, some units have moved and others have not, and what the step had
made is still held. So the engine is thrown away, another opened from the checkpoint, and what came
after is learned again, with half the batch; see `Learner.learn_block`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.config import LearnerSettings
from daemon.durable import replace_file
from daemon.learning.progressive import ProgressiveScore
from daemon.learning.replay import ReplayMemory
from daemon.serving.gate import Scores
from daemon.store import SampleReader, StoredSample
from engines import (
    PredictEngine,
    TrainEngine,
    Weights,
    WeightsError,
    is_out_of_memory,
    release_memory,
)
from engines.tensor_file import TensorFileError, pack, unpack
from models import ModelSpec

log = logging.getLogger(__name__)

OnStep = Callable[[], None]
# Predicted between two signs of life: slow networks answer a handful a second.
_PART_SAMPLES = 64


def _nobody() -> None:
    """Nobody counts the steps."""


class LearningError(RuntimeError):
    """Learning cannot go on from here: a loss is no longer a number."""


class MemoryShortageError(LearningError):
    """Memory ran out, twice where less could be tried; the learner is as a checkpoint has it."""


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """What one block of learning did.

    Args:
        samples: New samples in it.
        steps: Training steps taken.
        losses: Own loss of each unit at the last step.
        seconds: Time it took.
    """

    samples: int
    steps: int
    losses: tuple[float, ...]
    seconds: float


class Learner:
    """One network that learns from the store.

    Args:
        spec: The network.
        open_engine: Builds what trains it, the same each time; `restore` may load a checkpoint.
        open_predict: Opens the engine that scores.
        reader: The samples.
        settings: How to learn.
        holdout_samples: Most hold-out samples to score a candidate on.
        checkpoint: File to save to and resume from.
    """

    def __init__(
        self,
        spec: ModelSpec,
        open_engine: Callable[[], TrainEngine],
        open_predict: Callable[[Weights], PredictEngine],
        reader: SampleReader,
        settings: LearnerSettings,
        *,
        holdout_samples: int,
        checkpoint: Path,
    ) -> None:
        self._spec = spec
        self._open_engine = open_engine
        self._open_predict = open_predict
        self._reader = reader
        self._settings = settings
        self._holdout_samples = holdout_samples
        self._checkpoint = checkpoint
        self._good = checkpoint.with_name(f"good-{checkpoint.name}")
        self._batch_samples = settings.batch_samples
        self._begin()

    def _begin(self) -> None:
        self._engine = self._open_engine()
        self._memory = ReplayMemory(
            self._reader,
            seed=self._settings.seed,
            max_classes=self._spec.max_classes,
            max_samples=self._settings.replay_samples,
            max_bytes=self._settings.replay_bytes,
        )
        self._classes = 0  # class places seen; memory may have forgotten some of them
        self.last_seq = 0
        self.steps = 0
        self.score = ProgressiveScore()

    def backlog(self) -> int:
        """Samples that wait to be learned."""
        return self._reader.backlog(self.last_seq)

    def learn_block(self, on_step: OnStep = _nobody) -> BlockReport:
        """Predict, score, then learn the next block; what is left, if that is less.

        Where memory runs out, once more with half the batch, which then stays: from the last
        checkpoint on, so that the block learned may be an earlier one.

        Args:
            on_step: Called after each step, and after each part of what is predicted.

        Raises:
            LearningError: A loss is not a number.
            MemoryShortageError: Memory ran out twice.
        """
        return self._within_memory(lambda: self._learn_block(on_step))

    def _learn_block(self, on_step: OnStep) -> BlockReport:
        started = time.monotonic()
        self._memory.settle()
        new, through = self._reader.training(self.last_seq, self._settings.block_samples)
        self.last_seq = through
        if not new:
            return BlockReport(0, 0, (), 0.0)
        x, labels = self._reader.batch(new)
        if self.score.total == 0:
            self._engine.standardize_from(x)
        with self._open_predict(self._export(0, None)) as predictor:
            self.score.add(_found(predictor, x, on_step) == labels)
        self._classes = max(self._classes, *(sample.class_index + 1 for sample in new))
        self._memory.add(new)
        steps = -(-self._settings.steps_per_block * len(new) // self._settings.block_samples)
        losses = self._train(steps, new, on_step)
        return BlockReport(len(new), steps, losses, time.monotonic() - started)

    def rehearse(self, steps: int, on_step: OnStep = _nobody) -> BlockReport:
        """Take steps on remembered samples alone; where memory runs out, as `learn_block`.

        Args:
            steps: How many.
            on_step: Called after each.

        Raises:
            LearningError: A loss is not a number.
            MemoryShortageError: Memory ran out twice.
        """
        return self._within_memory(lambda: self._rehearse(steps, on_step))

    def _rehearse(self, steps: int, on_step: OnStep) -> BlockReport:
        started = time.monotonic()
        self._memory.settle()
        if not len(self._memory):
            return BlockReport(0, 0, (), 0.0)
        losses = self._train(steps, [], on_step)
        return BlockReport(0, steps, losses, time.monotonic() - started)

    def export(self, *, version: int, parent: int | None) -> Weights:
        """The network as it stands, under a version number.

        Raises:
            WeightsError: It must not serve.
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        with _shortage_named():
            return self._export(version, parent)

    def _export(self, version: int, parent: int | None) -> Weights:
        classes = self._reader.labels()[: self._classes]
        return self._engine.export(
            classes=classes, version=version, parent=parent, last_seq=self.last_seq
        )

    def compare(
        self, candidate: Weights, incumbent: Weights, best: Weights, on_part: OnStep = _nobody
    ) -> Scores:
        """The versions' right answers on the same hold-out samples.

        Args:
            candidate: Proposed.
            incumbent: Serves.
            best: Of all so far.
            on_part: Called after each part of what is predicted.

        Raises:
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        samples = self._reader.holdout(self._holdout_samples)
        if not samples:
            return Scores(0, 0, 0, 0)
        x, labels = self._reader.batch(samples)
        correct = []
        for weights in (incumbent, best, candidate):
            with _shortage_named(), self._open_predict(weights) as predictor:
                found = _found(predictor, x, on_part)
                correct.append(self._right(weights, found, labels))
        return Scores(len(samples), *correct)

    def _right(self, weights: Weights, found: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
        """Right answers, by name: a version older than the store may have other class places."""
        places = {label: place for place, label in enumerate(self._reader.labels())}
        # The last entry is for -1, the answer of a version that knows no class.
        known = np.array([*(places.get(label, -1) for label in weights.classes), -1])
        return int((known[found] == labels).sum())

    def save(self) -> None:
        """Write the checkpoint; a crash at any instant leaves the old one or this one.

        Raises:
            OSError: It cannot be written; the old one is still there.
        """
        fields = {
            "model": self._spec.to_json(),
            "last_seq": self.last_seq,
            "steps": self.steps,
            "classes": self._classes,
            "total": self.score.total,
            "correct": self.score.correct,
        }
        arrays = self._engine.state() | {"progressive.recent": self.score.recent}
        arrays |= self._memory.state()
        replace_file(self._checkpoint, pack(arrays, fields))

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one that fits.

        A damaged one, or one that is ahead of the samples, is passed over with a log line, and
        later written over; learning begins again from the first sample: nothing is lost but time.
        """
        try:
            arrays, fields = unpack(self._checkpoint.read_bytes())
            if ModelSpec.from_json(fields["model"]) != self._spec:
                raise WeightsError("it is of another model")
            if fields["last_seq"] > self._reader.last_seq():
                raise WeightsError("it has learned from samples that the store does not have")
            recent = arrays.pop("progressive.recent").astype(np.bool_)
            memory = {name: arrays.pop(name) for name in [*arrays] if name.startswith("memory.")}
            self._engine.load_state(arrays)
            self._memory.load(memory)
        except FileNotFoundError:
            return False
        except (TensorFileError, WeightsError, KeyError) as error:
            log.error("checkpoint cannot be used", extra={"why": str(error)})
            return False
        self.last_seq, self.steps = fields["last_seq"], fields["steps"]
        self._classes = fields["classes"]
        self.score = ProgressiveScore(fields["total"], fields["correct"], recent)
        return True

    def mark_good(self) -> None:
        """The checkpoint that lies there is of a version that has passed its probation."""
        with contextlib.suppress(FileNotFoundError):
            replace_file(self._good, self._checkpoint.read_bytes())

    def retreat(self) -> None:
        """Go back to the checkpoint of the last good version; what came after is passed over."""
        through = self._reader.last_seq()
        with contextlib.suppress(FileNotFoundError):
            replace_file(self._checkpoint, self._good.read_bytes())
        self._begin()
        self.restore()
        self.last_seq = through
        self.save()

    def _within_memory(self, work: Callable[[], BlockReport]) -> BlockReport:
        for batch_samples in (self._batch_samples, max(1, self._batch_samples // 2)):
            self._batch_samples = batch_samples
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = _first_line(error)
            # Outside the handler, which holds all that the failed step had made.
            log.warning(
                "memory ran out: learning goes on from the checkpoint",
                extra={"why": why, "batch_samples": batch_samples},
            )
            del self._engine
            release_memory()
            self._begin()
            self.restore()
        raise MemoryShortageError(
            f"memory ran out twice, at last with {batch_samples} samples a step: {why}; leave more "
            "memory free, or set learner.batch_samples or [model] to less"
        )

    def _train(self, steps: int, new: list[StoredSample], on_step: OnStep) -> tuple[float, ...]:
        settings = self._settings
        fresh = max(1, round(self._batch_samples * settings.new_ratio)) if new else 0
        losses: tuple[float, ...] = ()
        for _ in range(steps):
            draw = np.random.default_rng([settings.seed, self.steps])
            replayed = self._memory.draw(draw, self._batch_samples - fresh)
            count = self._batch_samples - len(replayed)
            rows = [new[i] for i in draw.integers(len(new), size=count)] if new else []
            rows += replayed
            x, labels = self._reader.batch(rows)
            report = self._engine.train_step(
                x,
                labels,
                learning_rate=settings.learning_rate,
                look_ahead_weight=settings.look_ahead_weight,
            )
            self.steps += 1
            if not report.finite:
                raise LearningError(f"step {self.steps}: losses {report.losses}")
            losses = report.losses
            on_step()
        return losses


def _found(predictor: PredictEngine, x: NDArray[np.float32], on_part: OnStep) -> NDArray[np.int64]:
    """The class of each sample; an answer does not depend on the part that it is in."""
    found = []
    for start in range(0, len(x), _PART_SAMPLES):
        found.append(predictor.predict(x[start : start + _PART_SAMPLES]).class_index)
        on_part()
    return np.concatenate(found)


@contextlib.contextmanager
def _shortage_named() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = _first_line(error)
        raise MemoryShortageError(
            f"memory ran out while a version was made or scored: {why}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
