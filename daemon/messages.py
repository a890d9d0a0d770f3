"""What the server and its learner say to each other: one JSON line a message, over two pipes."""

from __future__ import annotations

from typing import IO

import msgspec

from daemon.serving.gate import Scores

# The learner's exit status when its settings cannot be had here: EX_CONFIG of sysexits.h.
MISCONFIGURED = 78
# And when what it reads or writes cannot be had now: EX_IOERR.
STORAGE = 74


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Server: start learning; candidates count on from `next_version`.

    `active` and `best` are the versions to compare candidates with, each with its digest.
    """

    active: tuple[int, str]
    best: tuple[int, str]
    next_version: int


class Train(msgspec.Struct, frozen=True, tag="train"):
    """Server: an operator asks for training now, for at most so many steps and seconds."""

    max_steps: int | None
    max_seconds: float | None = None


class Pace(msgspec.Struct, frozen=True, tag="pace"):
    """Server: how much the learner may work, in force until the next word.

    `duty` is the share of the time that it may work, 0 to 1; `paused` says why it is 0.
    """

    duty: float
    paused: str | None


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """Server: the verdict on the candidate that was proposed last."""

    version: int
    accepted: bool


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Learner: ready; `resumed` from a checkpoint or not."""

    resumed: bool
    last_seq: int
    steps: int


class JobStarted(msgspec.Struct, frozen=True, tag="job_started"):
    """Learner: a job begins.

    `trigger`: `samples` (enough came), `time` (some waited long), `manual`, or `resumed` (learned
    before a restart, not yet judged).
    """

    trigger: str
    after_seq: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Learner: still alive; where it stands after a block, or while idle.

    `samples`, `steps` and `seconds` are those of the block; 0 while idle. `paused` is why
    nothing is learned, such as a disk that does not take the checkpoint.
    """

    samples: int
    steps: int
    seconds: float
    last_seq: int
    backlog: int
    progressive_accuracy: float | None
    recent_accuracy: float | None
    losses: list[float]
    paused: str | None = None


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Learner: still at work, or paused, in the middle of a block.

    `seconds` is what it has worked since it last said so, without its sleep between steps; `steps`
    are those it has taken.
    """

    seconds: float = 0.0
    steps: int = 0


class Proposed(msgspec.Struct, frozen=True, tag="proposed"):
    """Learner: a candidate's file is in place; the job waits for the verdict."""

    version: int
    sha256: str
    scores: Scores


class JobFailed(msgspec.Struct, frozen=True, tag="job_failed"):
    """Learner: the job ended without a candidate."""

    error: str


ToLearner = Begin | Train | Judged | Pace
FromLearner = Started | JobStarted | Progress | Alive | Proposed | JobFailed


def send(pipe: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message and flush it.

    Raises:
        OSError: The other side is gone.
    """
    pipe.write(msgspec.json.encode(message) + b"\n")
    pipe.flush()
