"""Runs the learner process: starts it, hears it, restarts it when it ends by itself.

One thread reads its reports. The server goes on answering whatever happens here.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from daemon.clock import stamp
from daemon.errors import NothingToLearnError, NotReadyError, RequestError
from daemon.messages import (
    Alive,
    Busy,
    FromLearner,
    JobFailed,
    JobStarted,
    Judged,
    Noted,
    Pace,
    Probed,
    Progress,
    Proposed,
    Retreated,
    Started,
    Train,
    send,
)
from daemon.serving.promotion import Promotion
from daemon.serving.swaps import Swaps
from daemon.store import SampleStore
from daemon.supervision.backoff import Backoff, Relapses
from daemon.supervision.child import close_pipe, end_child, start_child, wait_or_kill
from daemon.supervision.exits import REASONS, OutOfMemoryKills, Reason, reason_of
from daemon.supervision.following import Following
from daemon.supervision.heartbeat import HangWatch, Heartbeat
from daemon.supervision.jobs import JOBS, JOBS_KEPT, Job, JobBook
from daemon.supervision.room import Room
from daemon.telemetry import Telemetry

log = logging.getLogger(__name__)

NOTED = "learner"  # records of what a learner has told, with its kind
_POLL_SECONDS = 0.5
# How long judging a candidate may take, in which an engine may be built.
_VERDICT_SECONDS = 1800.0


class Supervisor:
    """The server's end of the learner.

    Args:
        command: Command line of the learner process.
        promotion: Judges what it proposes.
        swaps: Says which version serves, and when another does.
        jobs: Keeps its jobs.
        store: Says whether there is enough to learn.
        telemetry: Shows its progress.
        first_samples: Learning begins with so many.
        hang_seconds: One that says nothing for so long, without a reason, is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        promotion: Promotion,
        swaps: Swaps,
        jobs: JobBook,
        store: SampleStore,
        telemetry: Telemetry,
        *,
        first_samples: int,
        hang_seconds: float,
    ) -> None:
        self._first_samples = first_samples
        self._command = list(command)
        self._promotion = promotion
        self._following = Following(swaps, self._send)
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
        self._learned = False  # whether this learner has
        self._place: int | None = None  # the last it had learned, while it is at a job
        self._judging: float | None = None  # since when
        self._heartbeat = Heartbeat()
        self._watch = HangWatch(self._heartbeat, hang_seconds, lambda: self._judging is not None)
        self._memory_kills, self._room = OutOfMemoryKills(), Room()
        self._backoff, self._relapses = Backoff(), Relapses()
        for reason in REASONS:
            telemetry.learner_restarts.labels(reason)
        telemetry.learner_heartbeat.set_function(lambda: self.heard_seconds_ago)
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
    def why_down(self) -> str | None:
        """Why there is no learner that could learn; None: one is up, and heard."""
        if self._up:
            return self._watch.silence
        if self._paused is not None:
            return self._paused
        return "the learner starts" if self.pid else "the learner has ended and is started again"

    @property
    def worked(self) -> tuple[float, int]:
        """Seconds that all learners so far have worked, sleep between steps left out, and steps."""
        return self._worked_seconds, self._worked_steps

    @property
    def pid(self) -> int | None:
        """The learner's process id while it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    @property
    def heard_seconds_ago(self) -> float | None:
        """Since the learner's last word, or its start; None: none runs."""
        return None if self.pid is None else self._heartbeat.seconds_ago

    def well(self, seconds: float) -> bool:
        """Whether the learner is watched, and heard or judged; not how the learner is.

        Args:
            seconds: It must have been looked at within so many.
        """
        judging = self._judging
        return (
            self._thread.is_alive()
            and self._watch.seconds_since_look <= seconds
            and (judging is None or time.monotonic() - judging <= _VERDICT_SECONDS)
        )

    def start(self) -> None:
        """Start the learner."""
        self._watch.start()
        self._thread.start()

    def stop(self) -> None:
        """End the learner and wait for it; it loses at most what its checkpoint lacks."""
        self._stopping.set()
        process = self._process
        if process is not None:
            if process.stdin is not None:
                close_pipe(process.stdin)
            wait_or_kill(process)
        self._thread.join()
        self._watch.stop()

    def pace(self, pace: Pace) -> None:
        """How much the learner may work from now on, this one and those to come."""
        before, self._pace = self._pace, pace
        if pace != before:
            self._send(pace)

    def memory(self, *, short: bool) -> None:
        """Tell once a period how memory is; `pace` comes before.

        Args:
            short: Whether less is free than must be.
        """
        held = self.pid is not None and self._pace is not None and self._pace.duty <= 0
        must_end = self._room.period(time.monotonic(), short=short, held=held)
        if must_end and self._watch.kill("memory"):
            log.warning("learner is ended: paused, it keeps memory of which there is too little")

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
        samples = self._store.counts.to_learn
        if samples < self._first_samples and self._store.unavailable is None:
            raise NothingToLearnError(
                f"learning begins with the first {self._first_samples} samples that have a label "
                f"and are outside the hold-out; there are {samples} so far"
            )
        if not self._up:
            raise NotReadyError(f"{self.why_down or 'the learner starts'}; try again")
        job, new = self._jobs.request(reason, max_steps, max_seconds)
        if new:
            self._send_waiting()
        return job, new

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wait_for_store()
            self._wait_for_room()
            code, reason = self._run_once()
            self._up, self._paused = False, None
            self._telemetry.learner_up.set(0)
            self._telemetry.learner_backlog.set(None)
            self._telemetry.learner_paused.set(0)
            self._jobs.fail("the learner process ended")
            if self._stopping.is_set():
                return
            if self._relapses.ended(reason, self._place):
                after = {"after_seq": self._place}
                log.error("one block ends learner after learner: it is passed over", extra=after)
            pause = self._backoff.pause(reason, learned=self._learned)
            if self._backoff.in_vain:
                self._paused = self._backoff.in_vain
            log.error(
                "learner ended",
                extra={"exit_code": code, "reason": reason, "restart_seconds": pause},
            )
            self._telemetry.learner_restarts.labels(reason).inc()
            self._stopping.wait(pause)

    def _wait_for_store(self) -> None:
        """A learner that cannot read the samples would only end, and learn all again."""
        if (unavailable := self._store.unavailable) is None:
            return
        self._paused = f"learning waits for the store: {unavailable.why}"
        log.warning("learning waits for the store", extra={"cause": unavailable.cause})
        while self._store.unavailable and not self._stopping.wait(_POLL_SECONDS):
            pass
        self._paused = None
        if not self._stopping.is_set():
            # At a start without the store they could not be read, and would be written over.
            self._recall()

    def _wait_for_room(self) -> None:
        if self._room.missing is None:
            return
        while (missing := self._room.missing) and not self._stopping.is_set():
            self._paused = missing
            self._stopping.wait(_POLL_SECONDS)
        self._paused = None

    def _recall(self) -> None:
        try:
            self._jobs.recall(self._store.records(JOBS, JOBS_KEPT))
        except RequestError as error:
            log.error("earlier jobs cannot be read", extra={"why": str(error)})

    def _run_once(self) -> tuple[int | None, Reason]:
        """Start a learner and hear it until it ends; its exit status, and why it did."""
        self._learned, self._place = False, None
        killed = self._memory_kills.count()
        process = start_child(self._command)
        if process is None:
            return None, "crash"
        ours: Reason | None = None
        self._process, self._asked = process, None
        self._heartbeat.started()
        self._watch.watch(process)
        try:
            if not self._stopping.is_set():
                log.info("learner started", extra={"pid": process.pid})
                self._hear_all(process)
        except Exception:
            # Whatever one learner says, and whatever breaks in judging it, the next one is heard.
            log.exception("hearing the learner failed")
            process.kill()
            ours = "crash"
        finally:
            self._following.end()
        if killed_for := self._watch.release():
            ours = killed_for
            if ours == "hang" and not self._up:
                self._heartbeat.start_was_cut()
        code, deaf = end_child(process)
        memory_ran_out = self._memory_kills.count() != killed
        ours = ours or ("hang" if deaf else None)
        return code, reason_of(code, ours, memory_ran_out=memory_ran_out)

    def _hear_all(self, process: subprocess.Popen[bytes]) -> None:
        self._following.begin(self._relapses.take())
        if self._pace is not None:
            self._send(self._pace)
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        for line in process.stdout:
            message = msgspec.json.decode(line, type=FromLearner)
            self._heartbeat.heard(message.seconds if isinstance(message, Busy) else 0.0)
            self._hear(message)

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
                self._place = message.after_seq
            case Progress():
                self._progress(message)
            case Proposed():
                self._judge(message)
            case Probed() | Retreated():
                self._following.hear(message)
            case Alive():
                self._worked_seconds += message.seconds
                self._worked_steps += message.steps
            case Busy():
                pass
            case Noted():
                self._note(message)
            case JobFailed():
                log.error("training failed", extra={"why": message.error})
                self._jobs.fail(message.error)

    def _judge(self, message: Proposed) -> None:
        self._judging, self._place = time.monotonic(), None
        try:
            decision = self._promotion.consider(
                message.version,
                message.sha256,
                message.scores,
                self._jobs.effort(),
                lambda accepted: self._send(Judged(message.version, accepted)),
            )
            self._jobs.complete(decision)
            self._relapses.judged()
        finally:
            self._heartbeat.heard()  # it waited for us
            self._judging = None

    def _note(self, message: Noted) -> None:
        """On record under its place in the stream: one that is met again is the same one."""
        log.warning("learner: %s", message.kind, extra={"what": message.text, "seq": message.seq})
        self._telemetry.learner_events.labels(message.kind).inc()
        record = {"kind": message.kind, "text": message.text, "seq": message.seq, "at": stamp()}
        self._store.record_when_possible(f"{NOTED}_{message.kind}", message.seq, record)

    def _progress(self, message: Progress) -> None:
        telemetry = self._telemetry
        telemetry.learner_backlog.set(message.backlog)
        telemetry.learner_paused.set(message.paused is not None)
        telemetry.learner_written_bytes.inc(message.written_bytes)
        self._paused = message.paused
        self._store.learned(message.last_seq)
        telemetry.progressive(
            message.progressive_accuracy, message.recent_accuracy, message.faded_accuracy
        )
        telemetry.class_accuracy.set("progressive", message.class_accuracies)
        if message.forgetting is not None:
            telemetry.forgetting.set(message.forgetting)
        if message.steps:
            self._learned, self._place = True, message.last_seq
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
