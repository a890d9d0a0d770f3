"""What setbacks leave behind: a lower learning rate, and stretches of the stream that are left out.

    diverged    the stretch that was being learned is left out, the learning rate is halved
    accepted    a candidate passed the gate: the learning rate is what it was

A verdict comes after the checkpoint that it is about was saved: that names what it proposes, so
that a learner which starts from it can take in the verdict it has missed.

A network that diverges twice from the same checkpoint begins anew: what spoils it may be in the
checkpoint itself. Each time one more stretch is left out, so that it ends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.serving.gate import Scores
from daemon.store import StoredSample

# Halved ten times, steps no longer move anything; further down a rate would only underflow.
_LEAST_RATE = 2.0**-10


class Course:
    """State of a learner that outlives a return to its checkpoint."""

    def __init__(self) -> None:
        self.rate = 1.0  # factor on the learning rate
        self._left_out: list[tuple[int, int]] = []  # after the first seq, through the second
        self._diverged_from: int | None = None  # step of a checkpoint
        # The version that the checkpoint proposes, undecided when it was saved.
        self.proposed: tuple[int, Scores] | None = None
        self.judged_steps = 0  # that the network had taken when it was judged, or had gone back

    def diverged(self, stretch: tuple[int, int], checkpoint_step: int) -> bool:
        """Leave a stretch out and halve the learning rate.

        Args:
            stretch: After the first, through the second sequence number.
            checkpoint_step: Which checkpoint it was learned from.

        Returns:
            Whether it was the first time from there.
        """
        self.leave_out(stretch)
        self.rate = max(self.rate / 2, _LEAST_RATE)
        first = self._diverged_from != checkpoint_step
        self._diverged_from = checkpoint_step
        return first

    def leave_out(self, stretch: tuple[int, int]) -> None:
        """Neither learn nor remember what lies after the first, through the second number."""
        if stretch[0] < stretch[1]:
            self._left_out.append(stretch)

    def accepted(self) -> None:
        """A candidate passed the gate."""
        self.rate = 1.0

    def skip(self, seq: int) -> int:
        """Where learning goes on after `seq`: behind a stretch that begins there."""
        moved = True
        while moved:
            moved = False
            for after, through in self._left_out:
                if after <= seq < through:
                    seq, moved = through, True
        return seq

    def kept(self, samples: list[StoredSample]) -> list[StoredSample]:
        """Those that are not left out."""
        return [
            sample
            for sample in samples
            if not any(after < sample.seq <= through for after, through in self._left_out)
        ]

    def fields(self, last_seq: int) -> dict[str, Any]:
        """For a checkpoint that stands at `last_seq`: what lies before is never read again."""
        self._left_out = [
            (after, through) for after, through in self._left_out if through > last_seq
        ]
        return {
            "rate": self.rate,
            "left_out": [[*stretch] for stretch in self._left_out],
            "diverged_from": self._diverged_from,
            "proposed": msgspec.to_builtins(self.proposed),
            "judged_steps": self.judged_steps,
        }

    def load(self, fields: dict[str, Any]) -> None:
        """Take over what a checkpoint of an earlier process says.

        Raises:
            KeyError: It is no such checkpoint.
        """
        self.rate = fields["rate"]
        self._left_out = [(after, through) for after, through in fields["left_out"]]
        self._diverged_from = fields.get("diverged_from")
        self.proposed = msgspec.convert(fields.get("proposed"), tuple[int, Scores] | None)
        self.judged_steps = fields.get("judged_steps", 0)
