"""All that a learner's next step depends on, and its form as a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.config import LearnerSettings
from daemon.learning.answers import LearningError, OnPart
from daemon.learning.drift import DriftWatch
from daemon.learning.inputs import InputWatch, rows_to_fit
from daemon.learning.mix import StepMix
from daemon.learning.readings import REPEATS_WITHIN, are_new
from daemon.learning.replay import ReplayMemory
from daemon.learning.scores import StreamScores, is_score
from daemon.serving.gate import Scores
from daemon.store import SampleReader, StoredSample
from engines import TrainEngine, Weights, WeightsError
from engines.tensor_file import TensorFileError, pack, unpack
from models import ModelSpec

log = logging.getLogger(__name__)


class DivergedError(LearningError):
    """A loss or a weight is no longer a number."""


class LearnerState:
    """Where a learner stands; at first, before the first sample.

    Args:
        spec: The network.
        engine: Trains it; new.
        reader: The samples.
        settings: How to learn.
    """

    def __init__(
        self, spec: ModelSpec, engine: TrainEngine, reader: SampleReader, settings: LearnerSettings
    ) -> None:
        self._spec = spec
        self._reader = reader
        self._settings = settings
        self.engine = engine
        self.standardized = False
        self.inputs = InputWatch(spec.input_shape[0])
        self.memory = ReplayMemory(
            reader,
            seed=settings.seed,
            max_classes=spec.max_classes,
            max_samples=settings.replay_samples,
            max_bytes=settings.replay_bytes,
        )
        # Class places that a sample was learned of; memory may hold fewer.
        self.seen = np.zeros(spec.max_classes, np.bool_)
        self.last_seq = 0
        self.steps = 0
        self.score = StreamScores()
        self.drift = DriftWatch(spec.max_classes, settings.drift_delta)
        self.drift_steps = 0  # that are still taken in answer to an alarm
        self.change_seq: int | None = None  # where the last alarm puts the change

    def standardize(self, x: NDArray[np.float32]) -> None:
        """The first samples fix the standardisation."""
        if not self.standardized:
            self.engine.standardize_from(x)
            self.standardized, self.inputs = True, InputWatch(self._spec.input_shape[0])

    def follow_inputs(
        self, x: NDArray[np.float32], new: list[StoredSample], weights: Weights
    ) -> int:
        """Standardise anew where inputs no longer lie where they did.

        Args:
            x: Features of the block.
            new: The block.
            weights: The network as it was before it.

        Returns:
            How many features it was done for.
        """
        block_samples = self._settings.block_samples
        self.inputs.add(x, weights, len(new) / block_samples)
        if not self.inputs.moved:
            return 0
        rows, newest_rows = rows_to_fit(
            self.memory.samples, new, block_samples, self._spec.features
        )
        if not newest_rows:
            return 0
        fitted = self._reader.batch(rows + newest_rows)[0]
        newest = fitted[len(rows) :]
        together, alone = self.inputs.to_fit(fitted[: len(rows)], newest, weights)
        for features, samples in ((together, fitted), (alone, newest)):
            if features.any():
                self.engine.standardize_from(samples, features)
                self.inputs.fitted(features)
        return int(np.count_nonzero(together | alone))

    def drifted(
        self, new: list[StoredSample], wrong: NDArray[np.bool_], labels: NDArray[np.int64]
    ) -> int | None:
        """Watch a block's errors for drift, those of a reading that stands still once.

        Args:
            new: The block.
            wrong: Whether each answer was wrong, bool `[samples]`.
            labels: Class places.

        Returns:
            As `DriftWatch.add`.
        """
        counts = are_new(self._reader.trained_before(new[0].seq, REPEATS_WITHIN), new)
        seqs = [sample.seq for sample, new_one in zip(new, counts, strict=True) if new_one]
        return self.drift.add(wrong[counts], labels[counts], seqs)

    def remember(self, new: list[StoredSample]) -> None:
        """Put a block into memory; in answer to an alarm, in the place of what it contradicts."""
        if self.drift_steps and self.change_seq is not None:
            self.memory.outdate(self.change_seq, new)
        self.memory.add(new)

    def export(self, version: int, parent: int | None) -> Weights:
        """The network as it stands.

        Raises:
            DivergedError: It must not serve.
        """
        used = int(np.flatnonzero(self.seen).max(initial=-1)) + 1
        try:
            return self.engine.export(
                classes=self._reader.labels()[:used],
                version=version,
                parent=parent,
                last_seq=self.last_seq,
            )
        except WeightsError as error:
            raise DivergedError(str(error)) from error

    def take_steps(
        self,
        count: int,
        new: list[StoredSample],
        on_step: OnPart,
        *,
        batch_samples: int,
        rate: float,
    ) -> tuple[float, ...]:
        """Learn new samples and remembered ones.

        Args:
            count: Steps.
            new: A block; may be empty.
            on_step: Called after each step.
            batch_samples: Rows of a step.
            rate: Factor on the learning rate.

        Returns:
            Own loss of each unit at the last step.

        Raises:
            DivergedError: A loss is not a number.
        """
        settings = self._settings
        mix = StepMix(new, self.memory, self.seen, settings)
        losses: tuple[float, ...] = ()
        for _ in range(count):
            learning_rate, new_ratio = settings.learning_rate * rate, settings.new_ratio
            if self.drift_steps:
                learning_rate *= settings.drift_rate
                new_ratio = settings.drift_new_ratio
                self.drift_steps -= 1
            rows, places = mix.rows(self.steps, batch_samples, new_ratio)
            x, labels = self._reader.batch(rows)
            report = self.engine.train_step(
                x,
                labels,
                learning_rate=learning_rate,
                look_ahead_weight=settings.look_ahead_weight,
                places=places,
            )
            self.steps += 1
            if not report.finite:
                raise DivergedError(f"step {self.steps}: losses {report.losses}")
            losses = report.losses
            on_step()
        return losses

    def judged(self, scores: Scores, *, accepted: bool) -> None:
        """Take a decision into the scores."""
        self.score.measured(scores, self._reader.labels(), accepted=accepted)

    def checkpoint(self, more: dict[str, Any]) -> bytes:
        """The content of a checkpoint.

        Args:
            more: Fields of whoever saves it; `load` gives them back.
        """
        fields = {
            "model": self._spec.to_json(),
            "last_seq": self.last_seq,
            "steps": self.steps,
            "standardized": self.standardized,
            "seen": self.seen.tolist(),
            "drift_steps": self.drift_steps,
            "change_seq": self.change_seq,
            **more,
        }
        own = self.score.state() | self.memory.state() | self.drift.state() | self.inputs.state()
        return pack(self.engine.state() | own, fields)

    def load(self, content: bytes) -> dict[str, Any] | None:
        """Stand where a checkpoint stands.

        Returns:
            Its fields; None, after a log line, where it cannot be used: this is not to be used
            then either.
        """
        try:
            arrays, fields = unpack(content)
            if ModelSpec.from_json(fields["model"]) != self._spec:
                raise WeightsError("it is of another model")
            if fields["last_seq"] > self._reader.last_seq():
                raise WeightsError("it has learned from samples that the store does not have")
            names = [*filter(is_score, arrays), *self.memory.state(), *self.drift.state()]
            names += self.inputs.state()
            own = {name: arrays.pop(name) for name in names}
            self.score.load(own)
            self.memory.load(own)
            self.drift.load(own)
            self.inputs.load(own)
            self.standardized, self.drift_steps = fields["standardized"], fields["drift_steps"]
            self.change_seq = fields["change_seq"]
            self.seen = np.array(fields["seen"], np.bool_)
            self.engine.load_state(arrays)
        except (TensorFileError, WeightsError, KeyError) as error:
            log.error("checkpoint cannot be used", extra={"why": str(error)})
            return None
        self.last_seq, self.steps = fields["last_seq"], fields["steps"]
        return fields
