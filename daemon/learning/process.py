"""The learner as a process of its own: commands on standard input, reports on standard output.

It is niced and first in line when memory runs out, and it ends when its input closes, so it never
outlives the server, however that ended. Its crash costs no request: the server starts it again and
it resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from daemon.config import LearnerSettings
from daemon.durable import replace_file
from daemon.learning.learner import (
    BlockReport,
    Learner,
    LearningError,
    MemoryShortageError,
    OnStep,
)
from daemon.learning.pace import Pacer
from daemon.messages import (
    Alive,
    Begin,
    JobFailed,
    JobStarted,
    Judged,
    Pace,
    Progress,
    Proposed,
    Started,
    ToLearner,
    Train,
    send,
)
from daemon.serving.gate import Scores, becomes_best
from daemon.serving.versions import VersionStore
from engines import Weights, WeightsError, weights_digest, weights_to_bytes

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_IDLE_REPORT_SECONDS = 1.0
# A job that still has a backlog proposes what it has at least this often.
_PROPOSE_SECONDS = 2.0
_ALIVE_SECONDS = 1.0
# No job by itself for so long after one that memory did not suffice for.
_REST_SECONDS = 30.0


class UnwritableError(RuntimeError):
    """The checkpoint or a candidate cannot be written; nothing that was learned is lost by it."""


def report_damage(seq: int) -> None:
    """Say which sample is not learned."""
    log.error("a sample is damaged on disk and is not learned", extra={"seq": seq})


def lower_priority(niceness: int) -> None:
    """Give way to the server: less CPU time, and killed first when memory runs out."""
    os.nice(niceness)
    with contextlib.suppress(OSError):  # not Linux, or not permitted: only the order is lost
        Path("/proc/self/oom_score_adj").write_text("500")


class LearnerProcess:
    """The loop around a `Learner`.

    Args:
        learner: Not yet restored.
        versions: Where candidates are written and the incumbent is read; the manifest is not used.
        settings: When to learn.
        commands: The server's messages.
        reports: Where ours go.
    """

    def __init__(
        self,
        learner: Learner,
        versions: VersionStore,
        settings: LearnerSettings,
        commands: IO[bytes],
        reports: IO[bytes],
    ) -> None:
        self._learner = learner
        self._versions = versions
        self._settings = settings
        self._reports = reports
        self._inbox: queue.Queue[ToLearner | None] = queue.Queue()
        self._closed = threading.Event()
        self._alive: float | None = None  # when we last said that we are
        self._rests_until = 0.0
        self._paused: str | None = None  # why nothing is learned
        self._pacer = Pacer(self._say_alive)
        self._told_seconds, self._told_steps = 0.0, 0  # of work, in signs of life so far
        self._asked: Train | None = None  # and not begun
        self._unjudged = False  # something was learned that no candidate shows
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
        self._incumbent = self._versions.verify(*begin.active)
        try:
            self._best = self._versions.verify(*begin.best)
        except (WeightsError, OSError) as error:
            log.error("best version cannot be read", extra={"why": str(error)})
            self._best = self._incumbent
        self._next_version = begin.next_version
        resumed = self._learner.restore()
        send(self._reports, Started(resumed, self._learner.last_seq, self._learner.steps))
        self._told_steps = self._learner.steps
        self._unjudged = self._learner.last_seq > self._incumbent.last_seq
        waiting_since: float | None = None
        reported = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                command = self._inbox.get(timeout=_POLL_SECONDS)
                if command is None:
                    return
                if isinstance(command, Train):
                    self._asked = command
            backlog = self._learner.backlog()
            now = time.monotonic()
            if self._paused is not None and now >= self._rests_until:
                self._try_again()
            waiting_since = (waiting_since or now) if backlog else None
            begun = self._learner.last_seq > 0  # the first block fixes the standardisation
            allowed = self._pacer.paused is None
            rested = allowed and self._paused is None and now >= self._rests_until
            if rested and self._unjudged:
                self._unjudged = False
                self._job("resumed", 0)
            elif allowed and self._asked is not None:
                asked, self._asked = self._asked, None
                self._train(asked)
            elif rested and backlog >= self._settings.block_samples:
                self._job("samples", 0)
                waiting_since = None
            elif (
                rested
                and begun
                and waiting_since
                and now - waiting_since >= self._settings.max_wait_seconds
            ):
                self._job("time", 0)
                waiting_since = None
            elif now - reported >= _IDLE_REPORT_SECONDS:
                self._report_progress(backlog=backlog)
                reported = now

    def _train(self, asked: Train) -> None:
        if self._paused is None:
            steps = asked.max_steps or self._settings.train_steps
            self._job("manual", steps, asked.max_seconds)
        else:
            send(self._reports, JobStarted("manual", self._learner.last_seq))
            send(self._reports, JobFailed(self._paused))

    def _job(self, trigger: str, rehearsal_steps: int, max_seconds: float | None = None) -> None:
        """Learn, propose, wait for the verdict, save."""
        self._pacer.begin()
        send(self._reports, JobStarted(trigger, self._learner.last_seq))
        try:
            self._learn(trigger, rehearsal_steps, max_seconds)
            candidate = self._learner.export(
                version=self._next_version, parent=self._incumbent.version
            )
            scores = self._learner.compare(
                candidate, self._incumbent, self._best, self._between_steps
            )
            self._write(candidate)
        except MemoryShortageError as error:
            send(self._reports, JobFailed(str(error)))
            self._rests_until = time.monotonic() + _REST_SECONDS
            return
        except UnwritableError as error:
            self._pause(error)
            return
        except (LearningError, WeightsError) as error:
            send(self._reports, JobFailed(str(error)))
            raise
        send(self._reports, Proposed(candidate.version, weights_digest(candidate), scores))
        self._await_verdict(candidate, scores)

    def _write(self, candidate: Weights) -> None:
        try:
            replace_file(self._versions.path(candidate.version), weights_to_bytes(candidate))
        except OSError as error:
            raise UnwritableError(f"the candidate cannot be written ({error.strerror})") from error
        # Saved before the verdict: the weights learned are the same whatever it is.
        self._save()

    def _save(self) -> None:
        try:
            self._learner.save()
        except OSError as error:
            raise UnwritableError(f"the checkpoint cannot be written ({error.strerror})") from error

    def _pause(self, error: UnwritableError) -> None:
        """Learn nothing that could not be kept; what is learned already waits in memory."""
        self._paused = f"learning pauses: {error}"
        self._rests_until = time.monotonic() + _REST_SECONDS
        send(self._reports, JobFailed(self._paused))

    def _try_again(self) -> None:
        try:
            self._save()
        except UnwritableError:
            self._rests_until = time.monotonic() + _REST_SECONDS
            return
        log.info("learning goes on", extra={"paused": self._paused})
        self._paused = None
        self._unjudged = True

    def _learn(self, trigger: str, rehearsal_steps: int, max_seconds: float | None) -> None:
        started = saved = time.monotonic()
        end = math.inf if max_seconds is None else started + max_seconds
        least = 1 if trigger in ("time", "manual") else self._settings.block_samples
        while (backlog := self._learner.backlog()) >= least:
            self._work(self._learner.learn_block)
            log.debug("learned a block", extra={"backlog": backlog})
            now = time.monotonic()
            if now - saved >= self._settings.checkpoint_seconds:
                self._save()
                saved = now
            if now - started >= _PROPOSE_SECONDS or now >= end:
                break
        taken, fitting = 0, self._settings.steps_per_block if max_seconds is None else 1
        while taken < rehearsal_steps and (began := time.monotonic()) < end:
            if self._learner.backlog() >= self._settings.block_samples:
                break  # new samples come first
            steps = min(fitting, self._settings.steps_per_block, rehearsal_steps - taken)
            self._work(functools.partial(self._learner.rehearse, steps))
            taken += steps
            if max_seconds is not None:
                now = time.monotonic()
                fitting = max(1, int((end - now) * steps / max(now - began, 1e-9)))

    def _work(self, block: Callable[[OnStep], BlockReport]) -> None:
        before = self._pacer.worked_seconds
        done = block(self._between_steps)
        seconds = self._pacer.worked_seconds - before
        self._report_progress(done.samples, done.steps, seconds, [*done.losses])

    def _await_verdict(self, candidate: Weights, scores: Scores) -> None:
        later: list[ToLearner] = []
        while True:
            command = self._inbox.get()
            if command is None:
                raise SystemExit(0)
            if isinstance(command, Judged) and command.version == candidate.version:
                break
            later.append(command)
        for message in later:
            self._inbox.put(message)
        self._next_version = candidate.version + 1
        if command.accepted:
            self._incumbent = candidate
            if becomes_best(scores):
                self._best = candidate

    def _between_steps(self) -> None:
        """Work goes at the server's pace, and ends with the server."""
        self._pacer.between_steps()
        if self._closed.is_set():
            raise SystemExit(0)

    def _say_alive(self) -> None:
        """From the work itself, not from a thread beside it that would outlive a hang."""
        now = time.monotonic()
        if self._alive is None or now - self._alive >= _ALIVE_SECONDS:
            self._alive = now
            worked, steps = self._pacer.worked_seconds, self._learner.steps
            # A learner that went back to its checkpoint has fewer steps than it had.
            told = Alive(worked - self._told_seconds, max(0, steps - self._told_steps))
            self._told_seconds, self._told_steps = worked, steps
            send(self._reports, told)

    def _report_progress(
        self,
        samples: int = 0,
        steps: int = 0,
        seconds: float = 0.0,
        losses: list[float] | None = None,
        *,
        backlog: int | None = None,
    ) -> None:
        if self._closed.is_set():
            raise SystemExit(0)
        learner = self._learner
        progress = Progress(
            samples=samples,
            steps=steps,
            seconds=seconds,
            last_seq=learner.last_seq,
            backlog=learner.backlog() if backlog is None else backlog,
            progressive_accuracy=learner.score.accuracy,
            recent_accuracy=learner.score.recent_accuracy,
            losses=losses or [],
            paused=self._paused,
        )
        send(self._reports, progress)
