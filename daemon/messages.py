"""What the server and its learner say to each other: one JSON line a message, over two pipes."""

from __future__ import annotations

from typing import IO

import msgspec

from daemon.serving.gate import Scores

# The learner's exit status when its settings cannot be had here: EX_CONFIG of sysexits.h.
MISCONFIGURED = 78
# And when what it reads or writes cannot be had now: EX_IOERR.
STORAGE = 74
# And when it was refused memory where it cannot try with less: EX_OSERR.
OUT_OF_MEMORY = 71


Named = tuple[int, str]  # a version's number and digest


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Server: start learning; candidates count on from `next_version`.

    `active`, `best` and `newest_good` are the versions to compare candidates with. `retreat` is the
    number of a rollback that the learner before has not answered with `Retreated`, else 0.
    `good` are all versions that have passed their probation: a `Passed` may have met nobody.
    The block behind sequence number `pass_over` is not to be learned: learners have died of it.
    It is said to one learner, which keeps it; said again, it means the block after that one.
    """

    active: Named
    best: Named
    next_version: int
    retreat: int = 0
    good: list[int] = []
    newest_good: Named | None = None
    pass_over: int | None = None


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


class Serves(msgspec.Struct, frozen=True, tag="serves"):
    """Server: another version serves that was no candidate just now, by rollback or `activate`.

    Or the same one still serves, and another is the best.

    With `retreat` the learner goes back to the checkpoint of the newest of the `good` versions up
    to the one that serves, and says `Retreated` with the same `change`.
    """

    active: Named
    retreat: bool
    best: Named
    change: int
    good: list[int] = []
    newest_good: Named | None = None


class Watched(msgspec.Struct, frozen=True):
    """A version to predict new samples with, beside the one it is compared with; each its digest.

    Samples up to `through_seq` have been compared already.
    """

    version: tuple[int, str]
    previous: tuple[int, str]
    through_seq: int


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Server: all on probation from now on; counts go on of what was, beside the same version."""

    trials: list[Watched]


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """Server: a version has passed its probation."""

    version: Named


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Learner: ready; `resumed` from a checkpoint or not."""

    resumed: bool
    last_seq: int
    steps: int


class JobStarted(msgspec.Struct, frozen=True, tag="job_started"):
    """Learner: a job begins.

    `trigger`: `samples` (enough came), `time` (some waited long), `drift` (errors became more
    frequent), `manual`, or `resumed` (learned before a restart, not yet judged).
    """

    trigger: str
    after_seq: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Learner: still alive; where it stands after a block, or while idle.

    `samples`, `steps` and `seconds` are those of the block; 0 while idle. `paused` is why
    nothing is learned, such as a disk that does not take the checkpoint, or that no more may be
    written for now. `class_accuracies` are progressive, by label. `written_bytes` are candidates
    and checkpoints since the last report.
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
    faded_accuracy: float | None = None
    forgetting: float | None = None
    class_accuracies: dict[str, float] = {}
    written_bytes: int = 0


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Learner: still at work, or paused, in the middle of a block.

    `seconds` is what it has worked since it last said so, without its sleep between steps; `steps`
    are those it has taken.
    """

    seconds: float = 0.0
    steps: int = 0


class Busy(msgspec.Struct, frozen=True, tag="busy"):
    """Learner: it lives, and may say nothing for `seconds` now, such as while chains compile."""

    why: str
    seconds: float


class Proposed(msgspec.Struct, frozen=True, tag="proposed"):
    """Learner: a candidate's file is in place; the job waits for the verdict."""

    version: int
    sha256: str
    scores: Scores


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """Learner: a version on probation so far, since this learner was told to watch it.

    Of `n` different samples, none of them learned by either when it was made, `correct` are right
    by it, `previous_correct` by the version before it, `lost` by that one alone.
    """

    version: int
    n: int
    correct: int
    previous_correct: int
    lost: int
    through_seq: int


class Retreated(msgspec.Struct, frozen=True, tag="retreated"):
    """Learner: what was learned since the last good version is undone, and that is on disk."""

    change: int


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """Learner: something that an operator should know of, at a place in the order of arrival.

    `kind`: `drift` (errors became more frequent), `inputs` (they have moved, and are standardised
    anew), `diverged` (back at the checkpoint), `began_anew` (for the second time from there, or
    there was none), `retreated` (back at a good version), `no_checkpoint` (of a version that is
    good now: a rollback to it goes further back), or `passed_over` (a block that learners died of).
    """

    kind: str
    text: str
    seq: int


class JobFailed(msgspec.Struct, frozen=True, tag="job_failed"):
    """Learner: the job ended without a candidate."""

    error: str


ToLearner = Begin | Train | Judged | Serves | Watch | Passed | Pace
Judging = Proposed | Probed | Retreated
FromLearner = Started | JobStarted | Progress | Alive | Busy | Judging | Noted | JobFailed


def send(pipe: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message and flush it.

    Raises:
        OSError: The other side is gone.
    """
    pipe.write(msgspec.json.encode(message) + b"\n")
    pipe.flush()
