"""The learner as a process of its own: commands on standard input, reports on standard output.

It is niced and first in line when memory runs out, and it ends when its input closes; where the
server ends without a word, the kernel kills it (`daemon/supervision/child.py`). Its crash costs no
request: the server starts it again and it resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import IO

import msgspec

from daemon.config import LearnerSettings
from daemon.durable import replace_file
from daemon.learning.allowance import OWED_FILE, WriteAllowance
from daemon.learning.answers import LearningError
from daemon.learning.learner import BlockReport, Learner, OnStep
from daemon.learning.pace import Pacer
from daemon.learning.probe import Probe
from daemon.learning.references import References
from daemon.learning.reports import IDLE, Reports
from daemon.learning.shortage import MemoryShortageError
from daemon.learning.triggers import Trigger, Triggers
from daemon.messages import (
    Begin,
    JobFailed,
    JobStarted,
    Judged,
    Noted,
    Pace,
    Passed,
    Proposed,
    Retreated,
    Serves,
    Started,
    ToLearner,
    Train,
    Watch,
)
from daemon.serving.gate import Scores
from daemon.serving.versions import VersionStore
from engines import Weights, WeightsError, weights_digest, weights_to_bytes

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_IDLE_REPORT_SECONDS = 1.0
# A job that still has a backlog proposes what it has this often, if it may write so much.
_PROPOSE_SECONDS = 2.0
# No job by itself for so long after one that memory did not suffice for.
_REST_SECONDS = 30.0
_NOTHING = "nothing new has been learned: no sample waits, or it was undone; post more samples"


class UnwritableError(RuntimeError):
    """The checkpoint or a candidate cannot be written; nothing that was learned is lost by it."""


class LearnerProcess:
    """The loop around a `Learner`.

    Args:
        learner: Not yet restored.
        probe: Watches what is on probation.
        versions: Where candidates are written and the incumbent is read; the manifest is not used.
        settings: When to learn.
        commands: The server's messages.
        reports: Where ours go.
    """

    def __init__(
        self,
        learner: Learner,
        probe: Probe,
        versions: VersionStore,
        settings: LearnerSettings,
        commands: IO[bytes],
        reports: IO[bytes],
    ) -> None:
        self._learner = learner
        self._probe = probe
        self._versions = versions
        self._references = References(versions)
        self._settings = settings
        self._inbox: queue.Queue[ToLearner | None] = queue.Queue()
        self._closed = threading.Event()
        self._rests_until = 0.0
        self._paused: str | None = None  # why nothing is learned
        self._retreats: tuple[int, int] | None = None  # to which version, by which change: owed
        self._reports = Reports(reports, learner)
        learner.checkpoints.before = self._reports.storing
        self._pacer = Pacer(self._reports.alive)
        self._asked: Train | None = None  # and not begun
        self._allowance = WriteAllowance(
            settings.write_bytes_per_second, kept=learner.checkpoints.folder / OWED_FILE
        )
        learner.checkpoints.wrote = self._allowance.wrote
        self._triggers = Triggers(settings, self._allowance)
        self._proposal_bytes = 0  # that the last one wrote
        reader = threading.Thread(target=self._read, args=(commands,), daemon=True)
        reader.start()

    def _read(self, commands: IO[bytes]) -> None:
        try:
            for line in commands:
                message = msgspec.json.decode(line, type=ToLearner)
                if isinstance(message, Pace):  # in force at once, also in the middle of a block
                    self._pacer.follow(message)
                else:
                    self._inbox.put(message)
        finally:
            self._closed.set()
            self._pacer.release()
            self._inbox.put(None)

    def run(self) -> None:
        """Learn until the server closes our input."""
        begin = self._inbox.get()
        if not isinstance(begin, Begin):
            return
        self._references.follow(begin)
        self._next_version = begin.next_version
        self._settle(begin.good)
        resumed = self._learner.restore()
        self._hear_missed(begin)
        if begin.pass_over is not None:
            self._pass_over(begin.pass_over)
        if begin.retreat:
            self._retreat(begin.active[0], begin.retreat)
        self._reports.send(Started(resumed, self._learner.last_seq, self._learner.steps))
        self._reports.begin(self._pacer, may_compile=self._settings.may_compile)
        untrained = not self._references.incumbent.classes
        if untrained and begin.active[0] + 1 == begin.next_version:
            self._learner.course.judged_steps = 0  # no version was left: what is known serves again
        self._triggers.unjudged = self._learner.unjudged
        reported = 0.0
        while self._hear(_POLL_SECONDS):
            backlog = self._learner.backlog()
            now = time.monotonic()
            if self._paused is not None and now >= self._rests_until:
                self._try_again()
            allowed = self._pacer.paused is None
            rested = allowed and self._paused is None and now >= self._rests_until
            if allowed and self._asked is not None:
                asked, self._asked = self._asked, None
                self._train(asked)
            elif trigger := self._triggers.due(backlog, begun=self._learner.begun, rested=rested):
                self._job(trigger, 0)
            elif now - reported >= _IDLE_REPORT_SECONDS:
                self._progress()
                reported = now

    def _pass_over(self, after_seq: int) -> None:
        """Kept at once: whatever ends this learner, the next one is not told again."""
        self._learner.pass_over(after_seq)
        self._reports.notes()
        try:
            self._save()
        except UnwritableError as error:
            self._pause(error)

    def _hear_missed(self, begin: Begin) -> None:
        """Take in a verdict that the learner before has not, or not saved."""
        proposed = self._learner.course.proposed
        if proposed is not None and proposed[0] < begin.next_version:
            accepted = proposed[0] in (begin.active[0], *begin.good)
            self._learner.judged(*proposed, accepted=accepted)

    def _hear(self, wait_seconds: float) -> bool:
        """Obey all that is there, or else what comes next within so long; False: nothing will."""
        with contextlib.suppress(queue.Empty):
            while (command := self._inbox.get(timeout=wait_seconds)) is not None:
                self._obey(command)
                wait_seconds = min(wait_seconds, 0.001)
            return False
        return True

    def _obey(self, command: ToLearner) -> None:
        match command:
            case Train():
                self._asked = command
            case Serves():
                self._follow(command)
            case Watch():
                self._probe.watch(command.trials)
                self._learner.checkpoints.on_trial = {t.version[0] for t in command.trials}
            case Passed():
                self._references.passed(command)
                self._mark_good(command.version[0])
            case _:
                pass

    def _follow(self, command: Serves) -> None:
        """Another version serves: candidates are compared with it from now on."""
        self._references.follow(command)
        self._settle(command.good)
        if command.retreat:
            self._retreat(command.active[0], command.change)

    def _retreat(self, version: int, change: int) -> None:
        self._retreats = version, change
        try:
            self._go_back(version, change)
        except UnwritableError as error:
            self._pause(error)

    def _go_back(self, version: int, change: int) -> None:
        try:
            self._learner.retreat(version)
        except OSError as error:
            why = f"a checkpoint cannot be read or written ({error.strerror})"
            raise UnwritableError(why) from error
        self._retreats = None
        self._reports.notes()
        self._reports.send(Retreated(change))

    def _mark_good(self, version: int) -> None:
        why = "there is none"
        try:
            if self._learner.checkpoints.mark_good(version):
                return
        except OSError as error:
            why = str(error)
        text = f"no checkpoint of version {version}, which has passed, is kept: {why}"
        self._reports.send(Noted("no_checkpoint", text, self._learner.last_seq))

    def _settle(self, good: list[int]) -> None:
        try:
            self._learner.checkpoints.settle(good)
        except OSError as error:
            log.error("checkpoints cannot be sorted out", extra={"why": str(error)})

    def _train(self, asked: Train) -> None:
        if self._paused is None:
            steps = asked.max_steps or self._settings.train_steps
            self._job("manual", steps, asked.max_seconds)
        else:
            self._reports.send(JobStarted("manual", self._learner.last_seq))
            self._reports.send(JobFailed(self._paused))

    def _job(
        self, trigger: Trigger, rehearsal_steps: int, max_seconds: float | None = None
    ) -> None:
        """Learn, propose, wait for the verdict, save."""
        self._pacer.begin()
        self._triggers.begin()
        self._reports.send(JobStarted(trigger, self._learner.last_seq))
        self._reports.alive(now=True)
        try:
            self._learn(trigger, rehearsal_steps, max_seconds)
            if self._paused is not None:
                return  # and has said so
            candidate = self._learner.export(
                version=self._next_version, parent=self._references.incumbent.version
            )
            if not (candidate.classes and self._learner.unjudged):
                raise LearningError(_NOTHING)
            references = self._references
            scores = self._learner.compare(
                candidate, references.incumbent, references.others, self._between_steps
            )
            self._write(candidate, scores)
        except MemoryShortageError as error:
            self._reports.send(JobFailed(str(error)))
            self._rests_until = time.monotonic() + _REST_SECONDS
            return
        except UnwritableError as error:
            self._pause(error)
            return
        except LearningError as error:  # the next job goes on from the checkpoint
            self._reports.notes()
            self._reports.send(JobFailed(str(error)))
            return
        except WeightsError as error:
            self._reports.send(JobFailed(str(error)))
            raise
        self._reports.send(Proposed(candidate.version, weights_digest(candidate), scores))
        self._await_verdict(candidate, scores)

    def _write(self, candidate: Weights, scores: Scores) -> None:
        before = self._allowance.written_bytes
        try:
            content = weights_to_bytes(candidate)
            self._reports.storing("the candidate is written", len(content))
            replace_file(self._versions.path(candidate.version), content)
            self._allowance.wrote(len(content))
        except OSError as error:
            raise UnwritableError(f"the candidate cannot be written ({error.strerror})") from error
        # Saved before the verdict: the weights learned are the same whatever it is.
        self._learner.checkpoints.on_trial.add(self._references.incumbent.version)
        self._save(candidate.version, scores)
        self._proposal_bytes = self._allowance.written_bytes - before

    def _save(self, proposed: int | None = None, scores: Scores | None = None) -> None:
        try:
            self._learner.save(proposed, scores)
        except OSError as error:
            raise UnwritableError(f"the checkpoint cannot be written ({error.strerror})") from error

    def _pause(self, error: UnwritableError) -> None:
        """Learn nothing that could not be kept; what is learned already waits in memory."""
        told = self._paused is not None
        self._paused = f"learning pauses: {error}"
        self._rests_until = time.monotonic() + _REST_SECONDS
        if not told:
            self._reports.send(JobFailed(self._paused))

    def _try_again(self) -> None:
        try:
            if self._retreats is not None:
                self._go_back(*self._retreats)
            else:
                self._save()
        except UnwritableError:
            self._rests_until = time.monotonic() + _REST_SECONDS
            return
        log.info("learning goes on", extra={"paused": self._paused})
        self._paused = None
        self._triggers.unjudged = self._learner.unjudged

    def _learn(self, trigger: Trigger, rehearsal_steps: int, max_seconds: float | None) -> None:
        started = saved = time.monotonic()
        end = math.inf if max_seconds is None else started + max_seconds
        least = 1 if trigger in ("time", "manual", "drift") else self._settings.block_samples
        while self._paused is None and (backlog := self._learner.backlog()) >= least:
            for report in self._probe.look(self._learner.next_block, self._between_steps):
                self._reports.send(report)
            self._work(self._learner.learn_block)
            log.debug("learned a block", extra={"backlog": backlog})
            drifted = any(note.kind == "drift" for note in self._learner.notes)
            self._triggers.drifted = drifted
            now, may_write = time.monotonic(), self._allowance.allows(self._proposal_bytes)
            waited_for = drifted or self._asked is not None
            if drifted or (may_write and now - saved >= self._settings.checkpoint_seconds):
                self._save()
                saved = now
            self._reports.notes()
            if waited_for or now >= end or (may_write and now - started >= _PROPOSE_SECONDS):
                break
        taken, fitting = 0, self._settings.steps_per_block if max_seconds is None else 1
        while taken < rehearsal_steps and (began := time.monotonic()) < end:
            if self._paused or self._learner.backlog() >= self._settings.block_samples:
                break  # new samples come first
            steps = min(fitting, self._settings.steps_per_block, rehearsal_steps - taken)
            self._work(functools.partial(self._learner.rehearse, steps))
            self._reports.notes()
            taken += steps
            if max_seconds is not None:
                now = time.monotonic()
                fitting = max(1, int((end - now) * steps / max(now - began, 1e-9)))

    def _work(self, block: Callable[[OnStep], BlockReport]) -> None:
        before = self._pacer.worked_seconds
        done = block(self._between_steps)
        seconds = self._pacer.worked_seconds - before
        self._progress(done, seconds)
        # At once: a retreat that waited for the end of a long job would undo all of it.
        if not self._hear(0.0):
            raise SystemExit(0)

    def _progress(self, done: BlockReport = IDLE, seconds: float = 0.0) -> None:
        if self._closed.is_set():
            raise SystemExit(0)
        paused = self._paused or self._triggers.waits
        self._reports.progress(done, seconds, paused, self._allowance.written_bytes)

    def _await_verdict(self, candidate: Weights, scores: Scores) -> None:
        asked: list[Train] = []
        while True:
            command = self._inbox.get()
            if command is None:
                raise SystemExit(0)
            if isinstance(command, Judged) and command.version == candidate.version:
                break
            if isinstance(command, Train):
                asked.append(command)  # a job of its own
            else:
                self._obey(command)  # at once: changes of what serves come in their order
        for train in asked:
            self._inbox.put(train)
        self._next_version = candidate.version + 1
        self._learner.judged(candidate.version, scores, accepted=command.accepted)
        if command.accepted:
            self._references.accepted(candidate, scores)

    def _between_steps(self) -> None:
        """Work goes at the server's pace, and ends with the server."""
        self._pacer.between_steps()
        if self._closed.is_set():
            raise SystemExit(0)
