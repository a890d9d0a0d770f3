"""What follows when a learner has ended: how long to wait, and what to pass over.

A learner that gets on is started again at once, however often it is killed; one that ends before it
has learned anything waits ever longer. One whose settings cannot be had, or whose disk fails, is
left alone for longer: trying soon does not help.

Where one after the other crashes or hangs at the same place, the block there is to blame, as a
sample that native code cannot bear. Learning must not stand still at it for ever: the next learner
is told to pass over it, once: it keeps that in its checkpoint. Its samples stay stored. Where the
block behind it is no better, learners end at the same place as before, and it is passed over next;
but no more than three without a verdict between them, for then it is not the samples that are to
blame, and what is passed over is not learned again.
"""

from __future__ import annotations

from daemon.supervision.exits import Reason

_FIRST_SECONDS = 0.5
_LAST_SECONDS = 5.0
_LONG_SECONDS: dict[Reason, float] = {"settings": 60.0, "storage": 30.0}
_MOST_AT_ONE_PLACE = 3
_MOST_BLOCKS = 3
_MANY = 3


class Backoff:
    """How long to wait before the next start."""

    def __init__(self) -> None:
        self._next = _FIRST_SECONDS
        self._reason: Reason | None = None
        self._in_vain = 0  # ends in a row of learners that had learned nothing

    @property
    def in_vain(self) -> str | None:
        """What to tell where one learner after the other has ended and learned nothing."""
        if self._in_vain < _MANY:
            return None
        return (
            f"the learner has ended {self._in_vain} times in a row before it had learned "
            f"anything, at last for {self._reason}: see the log"
        )

    def pause(self, reason: Reason, *, learned: bool) -> float:
        """Seconds to wait.

        Args:
            reason: Why the learner ended.
            learned: Whether it had taken a step.
        """
        self._reason, self._in_vain = reason, self._in_vain + 1
        if learned:
            self._next, self._in_vain = _FIRST_SECONDS, 0
        pause = self._next
        self._next = min(2 * pause, _LAST_SECONDS)
        return _LONG_SECONDS.get(reason, pause)


class Relapses:
    """Whether learners end at one place, again and again."""

    def __init__(self) -> None:
        self._place: int | None = None
        self._times = 0
        self._blocks = 0  # passed over since the last verdict

    def judged(self) -> None:
        """A candidate was judged: learners get on."""
        self._times = self._blocks = 0

    def ended(self, reason: Reason, place: int | None) -> bool:
        """A learner has ended; whether the block there is to be passed over from now on.

        Args:
            reason: Why. What is done to a learner from outside blames no sample.
            place: Highest sequence number it had learned, if it was at a job; else None.
        """
        if reason not in ("crash", "hang") or place is None:
            return False
        self._times = self._times + 1 if place == self._place else 1
        self._place = place
        return self._times == _MOST_AT_ONE_PLACE and self._blocks < _MOST_BLOCKS

    def take(self) -> int | None:
        """The block behind this sequence number is not to be learned; None: nothing is so.

        Told once. A learner that ends before it has kept it will be told after as many ends more;
        to tell it twice could pass over two blocks for one.
        """
        if self._times < _MOST_AT_ONE_PLACE or self._blocks >= _MOST_BLOCKS:
            return None
        self._times, self._blocks = 0, self._blocks + 1
        return self._place
