"""What the learner says of itself to the server."""

from __future__ import annotations

import time
from typing import IO

import msgspec

from daemon.learning.learner import BlockReport, Learner
from daemon.learning.pace import Pacer
from daemon.messages import Alive, Busy, Progress, send

_ALIVE_SECONDS = 1.0
# How long the first step may take where chains or kernels are compiled for it.
COMPILE_SECONDS = 900.0
# What a slow card that is worn, or busy with others' writing, takes at least.
_BYTES_PER_SECOND = 1e6
_STORE_SECONDS = 60.0
IDLE = BlockReport(0, 0, (), 0.0)


class Reports:
    """Writes messages to the server.

    Args:
        pipe: Where they go.
        learner: What they are about.
    """

    def __init__(self, pipe: IO[bytes], learner: Learner) -> None:
        self._pipe = pipe
        self._learner = learner
        self._pacer: Pacer | None = None
        self._alive: float | None = None  # when we last said that we are
        self._told_seconds, self._told_steps = 0.0, 0  # of work, in signs of life so far
        self._told_bytes = 0
        self._compiles: int | None = None  # the step that may be long

    def begin(self, pacer: Pacer, *, may_compile: bool) -> None:
        """The learner is where it goes on from.

        Args:
            pacer: Knows how long it has worked.
            may_compile: Whether its first step may take long.
        """
        self._pacer, self._told_steps = pacer, self._learner.steps
        self._compiles = self._learner.steps if may_compile else None

    def send(self, message: msgspec.Struct) -> None:
        """Write one message.

        Raises:
            OSError: The server is gone.
        """
        send(self._pipe, message)

    def notes(self) -> None:
        """Tell what the learner has noted since."""
        for note in self._learner.notes:
            self.send(note)
        self._learner.notes.clear()

    def storing(self, what: str, size: int) -> None:
        """A file is written or read next, in which nothing can be said.

        Args:
            what: For whoever waits.
            size: In bytes.
        """
        self.send(Busy(what, _STORE_SECONDS + size / _BYTES_PER_SECOND))

    def alive(self, *, now: bool = False) -> None:
        """Say so once a second: from the work itself, a thread beside it would outlive a hang.

        Args:
            now: Whatever was said before.
        """
        time_now = time.monotonic()
        if not now and self._alive is not None and time_now - self._alive < _ALIVE_SECONDS:
            return
        self._alive = time_now
        if self._learner.steps == self._compiles:
            self.send(Busy("the first step may compile", COMPILE_SECONDS))
            return
        worked = 0.0 if self._pacer is None else self._pacer.worked_seconds
        steps = self._learner.steps
        # A learner that went back to its checkpoint has fewer steps than it had.
        told = Alive(worked - self._told_seconds, max(0, steps - self._told_steps))
        self._told_seconds, self._told_steps = worked, steps
        self.send(told)

    def progress(
        self, done: BlockReport, seconds: float, paused: str | None, written_bytes: int
    ) -> None:
        """Tell where the learner stands.

        Args:
            done: The block behind it.
            seconds: Work in it.
            paused: Why nothing is learned; None: it is.
            written_bytes: To disk, by this learner.
        """
        learner, score = self._learner, self._learner.score
        written, self._told_bytes = written_bytes - self._told_bytes, written_bytes
        self.send(
            Progress(
                samples=done.samples,
                steps=done.steps,
                seconds=seconds,
                last_seq=learner.last_seq,
                backlog=learner.backlog(),
                progressive_accuracy=score.accuracy,
                recent_accuracy=score.recent_accuracy,
                faded_accuracy=score.faded_accuracy,
                forgetting=score.forgetting,
                class_accuracies=learner.class_accuracies(),
                losses=[*done.losses],
                paused=paused,
                written_bytes=written,
            )
        )
