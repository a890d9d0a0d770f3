"""Runs the learner process: starts it, hears it, restarts it when it ends by itself.

One thread reads its reports. The server goes on answering whatever happens here.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

import msgspec

from daemon.errors import NothingToLearnError, NotReadyError, RequestError
from daemon.messages import (
    MISCONFIGURED,
    STORAGE,
    Alive,
    Begin,
    FromLearner,
    JobFailed,
    JobStarted,
    Judged,
    Pace,
    Progress,
    Proposed,
    Started,
    Train,
    send,
)
from daemon.serving.promotion import Promotion
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from daemon.supervision.jobs import JOBS, JOBS_KEPT, Job, JobBook
from daemon.telemetry import Telemetry

log = logging.getLogger(__name__)

_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 5.0
_STOP_SECONDS = 5.0
# How long a learner is left alone whose settings cannot be had here: trying soon does not help.
_MISCONFIGURED_SECONDS = 60.0
# And one that could not read or write what it has to.
_STORAGE_SECONDS = 30.0
_STORE_POLL_SECONDS = 0.5
# How long a learner may say nothing while it starts, takes the first step of its life (chains are
# compiled then), or waits for a verdict (an engine is built then).
_LONG_SILENCE_SECONDS = 900.0


class Supervisor:
    """The server's end of the learner.

    Args:
        command: Command line of the learner process.
        promotion: Judges what it proposes.
        versions: Says which version serves and which number comes next.
        jobs: Keeps its jobs.
        store: Says whether there is enough to learn.
        first_samples: Learning begins with so many.
        telemetry: Shows its progress.
    """

    def __init__(
        self,
        command: Sequence[str],
        promotion: Promotion,
        versions: VersionStore,
        jobs: JobBook,
        store: SampleStore,
        telemetry: Telemetry,
        *,
        first_samples: int,
    ) -> None:
        self._first_samples = first_samples
        self._command = list(command)
        self._promotion = promotion
        self._versions = versions
        self._jobs = jobs
        self._store = store
        self._telemetry = telemetry
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._asked: int | None = None  # the job that this learner was asked for
        self._pace: Pace | None = None
        self._worked_seconds, self._worked_steps = 0.0, 0
        self._up = False
        self._paused: str | None = None
        self._stepped = False  # whether this learner has taken a step
        self._heard = (time.monotonic(), _LONG_SILENCE_SECONDS)  # when, and what may follow
        self._thread = threading.Thread(target=self._run, name="learner-supervisor")

    @property
    def up(self) -> bool:
        """Whether the learner has reported since it was started."""
        return self._up

    @property
    def paused(self) -> str | None:
        """Why nothing is learned though the learner is up, or why it is not started; else None."""
        return self._paused

    @property
    def worked(self) -> tuple[float, int]:
        """Seconds that all learners so far have worked, sleep between steps left out, and steps."""
        return self._worked_seconds, self._worked_steps

    @property
    def pid(self) -> int | None:
        """The learner's process id while it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def well(self, seconds: float) -> bool:
        """Whether the learner is at work, idle, or about to be started again.

        Args:
            seconds: For how long silence means nothing, where the learner has no reason for more.
        """
        heard, silence = self._heard
        return time.monotonic() - heard <= max(seconds, silence)

    def start(self) -> None:
        """Start the learner."""
        self._thread.start()

    def stop(self) -> None:
        """End the learner and wait for it; it loses at most what its checkpoint lacks."""
        self._stopping.set()
        process = self._process
        if process is not None:
            if process.stdin is not None:
                _close(process.stdin)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()

    def pace(self, pace: Pace) -> None:
        """How much the learner may work from now on, this one and those to come."""
        before, self._pace = self._pace, pace
        if pace != before:
            self._send(pace)

    def request_training(
        self, reason: str, max_steps: int | None, max_seconds: float | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Have the learner train now.

        Returns:
            The job, and whether it is new.

        Raises:
            NothingToLearnError: Too few samples are stored.
            NotReadyError: The learner is not up.
        """
        if (samples := self._store.counts.to_learn) < self._first_samples:
            raise NothingToLearnError(
                f"learning begins with the first {self._first_samples} samples that have a label "
                f"and are outside the hold-out; there are {samples} so far"
            )
        if not self._up:
            raise NotReadyError("the learner is starting; try again")
        job, new = self._jobs.request(reason, max_steps, max_seconds)
        if new:
            self._send_waiting()
        return job, new

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            self._wait_for_store()
            started = time.monotonic()
            code = self._run_once()
            self._up, self._paused = False, None
            self._telemetry.learner_up.set(0)
            self._telemetry.learner_paused.set(0)
            self._jobs.fail("the learner process ended")
            if self._stopping.is_set():
                return
            if time.monotonic() - started > 60:
                backoff = _FIRST_BACKOFF_SECONDS
            self._telemetry.learner_restarts.inc()
            pauses = {MISCONFIGURED: _MISCONFIGURED_SECONDS, STORAGE: _STORAGE_SECONDS}
            pause = backoff if code is None else pauses.get(code, backoff)
            log.error("learner ended", extra={"exit_code": code, "restart_seconds": pause})
            self._expect(pause)
            self._stopping.wait(pause)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)

    def _wait_for_store(self) -> None:
        """A learner that cannot read the samples would only end, and learn all again."""
        if (unavailable := self._store.unavailable) is None:
            return
        self._paused = f"learning waits for the store: {unavailable.why}"
        log.warning("learning waits for the store", extra={"cause": unavailable.cause})
        while self._store.unavailable and not self._stopping.wait(_STORE_POLL_SECONDS):
            self._expect(_LONG_SILENCE_SECONDS)
        self._paused = None
        if not self._stopping.is_set():
            # At a start without the store they could not be read, and would be written over.
            self._recall()

    def _recall(self) -> None:
        try:
            self._jobs.recall(self._store.records(JOBS, JOBS_KEPT))
        except RequestError as error:
            log.error("earlier jobs cannot be read", extra={"why": str(error)})

    def _run_once(self) -> int | None:
        """Start a learner and hear it until it ends; its exit code, None if it never ran."""
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            log.error("learner cannot be started", extra={"why": str(error)})
            return None
        self._process, self._asked, self._stepped = process, None, False
        self._expect(_LONG_SILENCE_SECONDS)
        try:
            if not self._stopping.is_set():
                log.info("learner started", extra={"pid": process.pid})
                self._hear_all(process)
        except Exception:
            # Whatever one learner says, and whatever breaks in judging it, the next one is heard.
            log.exception("hearing the learner failed")
            process.kill()
        return self._end(process)

    def _hear_all(self, process: subprocess.Popen[bytes]) -> None:
        manifest = self._versions.manifest
        compared = [manifest.entry(version) for version in (manifest.active, manifest.best)]
        active, best = [(entry.version, entry.sha256) for entry in compared]
        self._send(Begin(active, best, manifest.last + 1))
        if self._pace is not None:
            self._send(self._pace)
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        for line in process.stdout:
            message = msgspec.json.decode(line, type=FromLearner)
            self._stepped |= isinstance(message, Alive)
            judging = isinstance(message, Proposed)
            starting = isinstance(message, JobStarted) and not self._stepped
            self._expect(_LONG_SILENCE_SECONDS if judging or starting else 0.0)
            self._hear(message)
            if judging:
                self._expect(0.0)

    def _expect(self, silence: float) -> None:
        """Note a sign of life; none other is due for `silence` seconds."""
        self._heard = (time.monotonic(), silence)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Close the pipes, so that it ends by itself, and make sure that it does."""
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _hear(self, message: FromLearner) -> None:
        match message:
            case Started():
                self._up = True
                self._telemetry.learner_up.set(1)
                self._store.learned(message.last_seq)
                log.info("learner ready", extra=msgspec.to_builtins(message))
                self._send_waiting()
            case JobStarted():
                self._jobs.start(message.trigger, message.after_seq)
            case Progress():
                self._progress(message)
            case Proposed():
                decision = self._promotion.consider(message.version, message.sha256, message.scores)
                self._jobs.complete(decision)
                self._send(Judged(decision.version, decision.accepted))
            case Alive():
                self._worked_seconds += message.seconds
                self._worked_steps += message.steps
            case JobFailed():
                log.error("training failed", extra={"why": message.error})
                self._jobs.fail(message.error)

    def _progress(self, message: Progress) -> None:
        telemetry = self._telemetry
        telemetry.learner_backlog.set(message.backlog)
        telemetry.learner_paused.set(message.paused is not None)
        self._paused = message.paused
        self._store.learned(message.last_seq)
        telemetry.progressive(message.progressive_accuracy, message.recent_accuracy)
        if message.steps:
            self._jobs.progress(message.samples, message.steps, message.last_seq, message.losses)
            telemetry.learned_samples.inc(message.samples)
            telemetry.learn_steps.inc(message.steps)
            telemetry.learn_seconds.inc(message.seconds)
            for unit, loss in enumerate(message.losses):
                telemetry.unit_loss.labels(str(unit)).set(loss)

    def _send_waiting(self) -> None:
        with self._asking:  # a request and a learner that comes up may both get here
            job: Job | None = self._jobs.waiting()
            if job is not None and self._asked != job.number:
                self._asked = job.number
                self._send(Train(job.max_steps, job.max_seconds))

    def _send(self, message: msgspec.Struct) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            with self._sending:
                send(process.stdin, message)
        except (OSError, ValueError):  # it has just ended; the reader sees that and restarts it
            log.warning("learner is gone", extra={"unsent": type(message).__name__})


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # what was buffered cannot reach a learner that is gone
        log.debug("learner was gone already")
