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
after is learned again, with half the batch, until another process begins; see
`Learner.learn_block`. Where a loss or a weight is no longer a number, the same is done without the
block (`course.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.config import LearnerSettings
from daemon.learning.answers import OnPart, found_classes
from daemon.learning.checkpoints import Checkpoints
from daemon.learning.course import Course
from daemon.learning.holdout import Holdout
from daemon.learning.scores import StreamScores
from daemon.learning.shortage import StepSize, shortage_named
from daemon.learning.state import DivergedError, LearnerState
from daemon.messages import Noted
from daemon.serving.gate import Scores
from daemon.store import SampleReader, StoredSample
from engines import PredictEngine, TrainEngine, Weights, release_memory
from models import ModelSpec

log = logging.getLogger(__name__)

OnStep = OnPart


def _nobody() -> None:
    """Nobody counts the steps."""


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
        follow_drift: Of these only ones that came after the last change of the stream.
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
        follow_drift: bool = False,
        checkpoint: Path,
    ) -> None:
        self._spec = spec
        self._open_engine = open_engine
        self._open_predict = open_predict
        self._reader = reader
        self._settings = settings
        self._holdout = Holdout(reader, holdout_samples)
        self._follow_drift = follow_drift
        self.checkpoints = Checkpoints(checkpoint)  # also of earlier versions
        self.course = Course()  # outlives a return to the checkpoint
        self._saved_step = 0  # of the checkpoint
        self._stretch = (0, 0)  # what was learned last: after the first seq, through the second
        self._step_size = StepSize(settings.batch_samples)
        self.notes: list[Noted] = []  # what the server is to know; whoever tells it clears this
        self._state = self._opened()

    @property
    def last_seq(self) -> int:
        """The stream is learned through here."""
        return self._state.last_seq

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._state.steps

    @property
    def score(self) -> StreamScores:
        """Of every sample, before it was learned."""
        return self._state.score

    @property
    def change_seq(self) -> int | None:
        """Where the last drift alarm puts the change; None: there was none."""
        return self._state.change_seq

    @property
    def begun(self) -> bool:
        """Whether a first block has fixed the standardisation."""
        return self._state.standardized

    @property
    def unjudged(self) -> bool:
        """Whether steps were taken that no verdict is about, and no retreat has undone."""
        return self.steps != self.course.judged_steps

    def backlog(self) -> int:
        """Samples that wait to be learned."""
        return self._reader.backlog(self.last_seq)

    def next_block(self) -> tuple[list[StoredSample], int]:
        """What is learned next, without what is left out, and through which number that is."""
        after = self.course.skip(self.last_seq)
        samples, through = self._reader.training(after, self._settings.block_samples)
        return self.course.kept(samples), through

    def learn_block(self, on_step: OnStep = _nobody) -> BlockReport:
        """Predict, score, then learn the next block; what is left, if that is less.

        Where memory runs out, once more with half the batch, which then stays: from the last
        checkpoint on, so that the block learned may be an earlier one. Where learning diverges,
        nothing is learned: the next block is one after the checkpoint.

        Args:
            on_step: Called after each step, and after each part of what is predicted.

        Raises:
            MemoryShortageError: Memory ran out twice.
        """
        return self._converging(lambda: self._learn_block(on_step), on_step)

    def _learn_block(self, on_step: OnStep) -> BlockReport:
        started, state = time.monotonic(), self._state
        state.memory.settle()
        after, (new, through) = self.course.skip(state.last_seq), self.next_block()
        if not new:
            state.last_seq = through
            return BlockReport(0, 0, (), 0.0)
        x, labels = self._reader.batch(new)
        state.standardize(x)
        if self._stretch[0] == self._stretch[1]:
            self._stretch = (after, through)  # nothing else was learned that could have spoiled it
        with self._open_predict(weights := state.export(0, None)) as predictor:
            found = found_classes(predictor, x, on_step)
        state.score.add(found, labels)
        change = state.drifted(new, found != labels, labels)
        state.last_seq, self._stretch = through, (after, through)
        state.seen[labels] = True
        state.remember(new)
        if moved := state.follow_inputs(x, new, weights):
            self._note("inputs", f"inputs have moved, and are standardised anew: {moved}", through)
        steps = -(-self._settings.steps_per_block * len(new) // self._settings.block_samples)
        losses = self._take(steps, new, on_step)
        if change is not None and not state.drift_steps:
            # From the next block on, so that whoever runs us can save a checkpoint first.
            state.change_seq, state.drift_steps = change, self._settings.drift_steps
            self._note("drift", f"errors are more frequent since sample {change}", through)
        return BlockReport(len(new), steps, losses, time.monotonic() - started)

    def pass_over(self, after_seq: int) -> None:
        """Leave out the first block behind `after_seq` that is not left out already."""
        after = self.course.skip(after_seq)
        _, through = self._reader.training(after, self._settings.block_samples)
        self.course.leave_out((after, through))
        text = f"learners ended at samples {after + 1} through {through}: they are left out"
        self._note("passed_over", text, through)

    def rehearse(self, steps: int, on_step: OnStep = _nobody) -> BlockReport:
        """Take steps on remembered samples alone; where memory runs out, as `learn_block`.

        Args:
            steps: How many.
            on_step: Called after each.

        Raises:
            MemoryShortageError: Memory ran out twice.
        """
        return self._converging(lambda: self._rehearse(steps, on_step), on_step)

    def _rehearse(self, steps: int, on_step: OnStep) -> BlockReport:
        started = time.monotonic()
        self._state.memory.settle()
        if not len(self._state.memory):
            return BlockReport(0, 0, (), 0.0)
        self._stretch = (self.last_seq, self.last_seq)
        losses = self._take(steps, [], on_step)
        return BlockReport(0, steps, losses, time.monotonic() - started)

    def export(self, *, version: int, parent: int | None) -> Weights:
        """The network as it stands, under a version number.

        Raises:
            DivergedError: It must not serve; the learner has gone back to its checkpoint.
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        try:
            with shortage_named():
                return self._state.export(version, parent)
        except DivergedError as error:
            self._recover(str(error), _nobody)
            raise

    def compare(
        self, candidate: Weights, incumbent: Weights, best: list[Weights], on_part: OnPart = _nobody
    ) -> Scores:
        """The versions' right answers on the same hold-out samples.

        Args:
            candidate: Proposed.
            incumbent: Serves.
            best: Of all so far, and the newest good one.
            on_part: Called after each part of what is predicted.

        Raises:
            MemoryShortageError: Memory ran out; nothing has changed.
        """
        after_seq = (self.change_seq or 0) if self._follow_drift else 0
        return self._holdout.compare(
            candidate, incumbent, best, self._open_predict, on_part, after_seq=after_seq
        )

    def class_accuracies(self) -> dict[str, float]:
        """Progressive accuracy of the first hundred classes, by label."""
        return self.score.class_accuracies(self._reader.labels())

    def save(self, proposed: int | None = None, scores: Scores | None = None) -> None:
        """Write the checkpoint; a crash at any instant leaves the old one or this one.

        Args:
            proposed: The version that is proposed as the network stands; its copy is kept until
                `judged`, `retreat` or `checkpoints.mark_good` decides about it.
            scores: Its own, for a verdict that is heard of only after a restart.

        Raises:
            OSError: It cannot be written; the old one is still there.
        """
        self.course.proposed = None if proposed is None or scores is None else (proposed, scores)
        self.checkpoints.write(self._state.checkpoint(self.course.fields(self.last_seq)))
        self._saved_step = self.steps
        if proposed is not None:
            self.checkpoints.keep(proposed)

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one that fits.

        A damaged one, one that is ahead of the samples, or one of an earlier release is passed over
        with a log line, and later written over; learning begins again from the first sample:
        nothing is lost but time.
        """
        if (fields := self._go_back(self.checkpoints.read())) is not None:
            self.course.load(fields)
        return fields is not None

    def judged(self, version: int, scores: Scores, *, accepted: bool) -> None:
        """Take in the verdict on the version that was compared last."""
        self._state.judged(scores, accepted=accepted)
        self.course.judged_steps = self.steps
        if accepted:
            self.course.accepted()
        else:
            self.checkpoints.forget(version)

    def retreat(self, version: int) -> None:
        """Go back to where the newest good version up to this one was proposed.

        Nothing of what was learned since is learned again or replayed; it stays stored, and its
        scores stay counted. Where no such checkpoint is left, the network begins anew. On disk when
        this returns; a crash before leaves the checkpoint as it was. Twice is as once.

        Args:
            version: Serves.

        Raises:
            OSError: A checkpoint cannot be read or written.
        """
        through, score = self.last_seq, self.score
        good = (v for v in self.checkpoints.good() if v <= version)
        try:
            back = next((v for v in good if self._back_at(v)), None)
        except OSError:  # perhaps behind a damaged one: it is tried again, from where it began
            self._state.last_seq, self._state.score = through, score
            raise
        if back is None:
            self._go_back(None)
        after, self.course.judged_steps = self.last_seq, self.steps
        self._state.last_seq, self._state.score = max(after, through), score
        self.save()
        self.checkpoints.forget_proposed(but=version)
        left = f"samples after {after} through {self.last_seq} are left out"
        if back is None:
            text = f"no checkpoint of a good version up to {version} is left: the network is new"
            self._note("began_anew", f"{text}; {left}", self.last_seq)
        else:
            self._note("retreated", f"back at version {back}: {left}", after)

    def _back_at(self, version: int) -> bool:
        return self._go_back(self.checkpoints.read_good(version)) is not None

    def _converging(self, work: Callable[[], BlockReport], on_step: OnStep) -> BlockReport:
        try:
            return self._step_size.within_memory(
                work, lambda: self._go_back(self.checkpoints.read())
            )
        except DivergedError as error:
            why = str(error)
        self._recover(why, on_step)
        return BlockReport(0, 0, (), 0.0)

    def _recover(self, why: str, on_step: OnStep) -> None:
        """Back to the checkpoint, without the stretch that was learned last.

        The second time from the same checkpoint the network begins anew, on what memory holds.
        """
        after, through = self._stretch
        first = self.course.diverged(self._stretch, self._saved_step)
        text = f"{why}; samples after {after} through {through} are left out"
        self._note("diverged" if first else "began_anew", text, through)
        self._go_back(self.checkpoints.read())
        if not first:
            self._begin_anew(on_step)

    def _begin_anew(self, on_step: OnStep) -> None:
        """A new network in the checkpoint's place learns what memory holds."""
        state = self._state
        state.engine, state.standardized = self._open_engine(), False
        state.memory.settle()
        if not len(state.memory):
            return
        try:
            state.standardize(self._reader.batch(state.memory.samples)[0])
            with shortage_named():
                self._take(self._settings.train_steps, [], on_step)
                state.export(0, None)
        except DivergedError as error:
            log.error("what memory holds cannot be learned", extra={"why": str(error)})
            self._state, self.course.judged_steps = self._opened(), 0
            self._state.last_seq, self._state.score = state.last_seq, state.score

    def _go_back(self, content: bytes | None) -> dict[str, Any] | None:
        """Stand where a checkpoint stands, or before the first sample; its fields, if it is used.

        Memory of the network as it was is given back first.
        """
        del self._state
        release_memory()
        self._state = self._opened()
        fields = None if content is None else self._state.load(content)
        if content is not None and fields is None:
            self._state = self._opened()
        self._stretch = (self.last_seq, self.last_seq)
        self._saved_step = self.steps
        if self.steps < self.course.judged_steps:
            self.course.judged_steps = 0  # what is learned from here on is another network
        return fields

    def _opened(self) -> LearnerState:
        return LearnerState(self._spec, self._open_engine(), self._reader, self._settings)

    def _note(self, kind: str, text: str, seq: int) -> None:
        self.notes.append(Noted(kind, text, seq))

    def _take(self, steps: int, new: list[StoredSample], on_step: OnStep) -> tuple[float, ...]:
        return self._state.take_steps(
            steps, new, on_step, batch_samples=self._step_size.samples, rate=self.course.rate
        )
