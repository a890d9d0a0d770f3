"""Training jobs: what was learned when, why, and what became of it.

At most one runs at a time. The learner starts them by itself; an operator may ask for one, which
then waits until the learner takes it up.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from daemon.serving.gate import Decision, Effort

JOBS = "job"  # their records in the store
JOBS_KEPT = 100
# So long an id is held back until it is on disk: after that it is given out all the same.
_GIVEN_SECONDS = 1.0


@dataclasses.dataclass
class Job:
    """One run of the learner, up to a candidate and its verdict.

    Args:
        number: Grows with every job.
        trigger: `samples`, `time`, `drift`, `manual` or `resumed`.
        reason: An operator's words; empty otherwise.
        max_steps: Steps an operator asked for; None: the configured number.
        max_seconds: After so many an operator wants it to end; None: without limit.
        state: `waiting`, `running`, `completed` or `failed`.
        after_seq: Sequence number that learning went on from.
        last_seq: Highest sequence number learned.
        samples: New samples learned.
        steps: Training steps.
        seconds: From start to end, or to now.
        losses: Own loss of each unit at the last step.
        candidate: Version it proposed.
        gate: The verdict.
        error: Why it failed.
    """

    number: int
    trigger: str
    reason: str = ""
    max_steps: int | None = None
    max_seconds: float | None = None
    state: str = "waiting"
    after_seq: int = 0
    last_seq: int = 0
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)
    candidate: str | None = None
    gate: dict[str, Any] | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The job as clients see it."""
        fields = dataclasses.asdict(self)
        return {"job": job_name(fields.pop("number")), **fields}


def job_name(number: int) -> str:
    """The id that clients use."""
    return f"t-{number}"


def _ended(job: dict[str, Any]) -> dict[str, Any]:
    """A job of an earlier run, which nobody can be at any more."""
    if job.get("state") not in ("waiting", "running"):
        return job
    return job | {"state": "failed", "error": "the daemon ended before this job did"}


def _number(job: dict[str, Any]) -> int:
    return int(job["job"].removeprefix("t-"))


class JobBook:
    """All jobs, newest last; safe to use from several threads.

    Args:
        past: Jobs of earlier runs as `to_json` gave them, newest first.
        on_end: Called with each job's number and JSON when it ends.
        on_start: Called when the learner begins one.
        joules: Energy of learning so far, this moment included; None: not known.
        on_given: Called with a job's number and JSON when somebody is first given its id, so that
            no later job has it whatever becomes of this daemon; what it returns is waited for.
    """

    def __init__(
        self,
        past: list[dict[str, Any]],
        on_end: Callable[[int, dict[str, Any]], object],
        on_start: Callable[[], object] = lambda: None,
        joules: Callable[[], float | None] = lambda: None,
        on_given: Callable[[int, dict[str, Any]], Future[None] | None] = lambda number, job: None,
    ) -> None:
        self._lock = threading.Lock()
        earlier = [_ended(job) for job in reversed(past)]
        self._past: deque[dict[str, Any]] = deque(earlier, maxlen=JOBS_KEPT)
        self._on_given = on_given
        self._given: int | None = None  # the job whose id was given out last
        self._last = max(map(_number, past), default=0)
        self._on_end = on_end
        self._on_start = on_start
        self._joules = joules
        self._began_joules: float | None = None
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._started = 0.0

    def recall(self, past: list[dict[str, Any]]) -> None:
        """Take in jobs of earlier runs that could not be read at the start.

        Args:
            past: As for the class.
        """
        with self._lock:
            known = {_number(job) for job in self._past}
            known |= {job.number for job in (self._waiting, self._running) if job}
            earlier = [_ended(job) for job in reversed(past) if _number(job) not in known]
            self._past.extendleft(reversed(earlier))
            self._last = max(self._last, *map(_number, past), 0)

    def request(
        self, reason: str, max_steps: int | None, max_seconds: float | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Ask for a manual job.

        Returns:
            The job, and whether it is new: one that runs or waits already answers every request.
        """
        kept = None
        with self._lock:
            job = self._running or self._waiting
            if new := job is None:
                job = self._waiting = self._new("manual", reason, max_steps, max_seconds)
            found = job.to_json()
            if self._given != job.number:
                # Within the lock: its end, which takes the place of this, is recorded after it.
                self._given, kept = job.number, self._on_given(job.number, found)
        if kept is not None:
            wait([kept], _GIVEN_SECONDS)
        return found, new

    @property
    def running(self) -> bool:
        """Whether the learner is at one."""
        return self._running is not None

    def waiting(self) -> Job | None:
        """The manual job that the learner has not taken up."""
        return self._waiting

    def start(self, trigger: str, after_seq: int) -> None:
        """The learner begins a job."""
        with self._lock:
            if trigger == "manual" and self._waiting is not None:
                job, self._waiting = self._waiting, None
            else:
                job = self._new(trigger)
            job.state, job.after_seq = "running", after_seq
            self._running, self._started = job, time.monotonic()
        self._on_start()
        self._began_joules = self._joules()

    def progress(self, samples: int, steps: int, last_seq: int, losses: list[float]) -> None:
        """The running job has learned a block."""
        with self._lock:
            if job := self._running:
                job.samples += samples
                job.steps += steps
                job.last_seq = last_seq
                job.losses = losses
                job.seconds = time.monotonic() - self._started

    def effort(self) -> Effort:
        """What the running job has cost so far; nothing where none runs."""
        began, now = self._began_joules, self._joules()
        with self._lock:
            if (job := self._running) is None:
                return Effort()
            return Effort(
                max(job.after_seq, job.last_seq),
                job.samples,
                time.monotonic() - self._started,
                None if began is None or now is None else now - began,
            )

    def complete(self, decision: Decision) -> None:
        """The running job's candidate was judged."""
        self._end("completed", candidate=str(decision.version), gate=decision.to_json())

    def fail(self, error: str) -> None:
        """The running job, if there is one, ended without a verdict."""
        self._end("failed", error=error)

    def find(self, name: str) -> dict[str, Any] | None:
        """One job by its id."""
        return next((job for job in self.list() if job["job"] == name), None)

    def list(self) -> list[dict[str, Any]]:
        """Newest first."""
        with self._lock:
            live = [job.to_json() for job in (self._waiting, self._running) if job]
            return sorted([*live, *self._past], key=_number, reverse=True)

    def _new(
        self,
        trigger: str,
        reason: str = "",
        max_steps: int | None = None,
        max_seconds: float | None = None,
    ) -> Job:
        self._last += 1
        return Job(self._last, trigger, reason, max_steps, max_seconds)

    def _end(self, state: str, **fields: Any) -> None:  # noqa: ANN401 - fields of Job
        with self._lock:
            job, self._running = self._running, None
            if job is None:
                return
            job = dataclasses.replace(
                job, state=state, seconds=time.monotonic() - self._started, **fields
            )
            self._past.append(job.to_json())
        self._on_end(job.number, job.to_json())
