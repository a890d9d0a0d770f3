"""How much the learner may write: the memory cards that it lives on wear out by it.

Each candidate is a file of its own and a whole checkpoint, 12 MB together for the default network;
one every two seconds is 500 GB a day, and a card of 64 GB lasts a few months of that. So what is
written is owed, the debt falls at a steady rate, and while it is high nothing is proposed that
nobody has asked for (a leaky bucket, Turner 1986). Samples wait in the store; none is lost.

A learner that crashes again and again would begin each time without a debt, so the debt is kept in
a file, and its time is how old that is. Sizes and times of checkpoints would not do: what all that
came before owed is not in them, and assumed at its worst it would hold up each start of a small
network. The file is not synced: a power cut may lose seconds of it, and comes less often than that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

# Written at once after a time of rest, as when a daemon is tried out.
BURST_BYTES = 64 << 20
OWED_FILE = "learner-owed-bytes.txt"  # one number


class WriteAllowance:
    """Counts what is written.

    Args:
        bytes_per_second: At most, on average; 0: no limit.
        clock: Seconds that only grow.
        kept: File that outlives this process; one that is missing or damaged: nothing is owed.
    """

    def __init__(
        self,
        bytes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        kept: Path | None = None,
    ) -> None:
        self.written_bytes = 0
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._kept = kept
        self._owed_bytes, self._at = self._still_owed(), clock()

    def wrote(self, size: int) -> None:
        """So many bytes more, whoever wanted them."""
        self.written_bytes += size
        self._owed_bytes = self._owed() + size
        if self._kept is not None and self._bytes_per_second:
            with contextlib.suppress(OSError):  # less is remembered, and nothing else goes wrong
                self._kept.write_text(f"{self._owed_bytes:.0f}\n")

    def allows(self, size: int = 0) -> bool:
        """Whether something may be written that can wait.

        Args:
            size: Bytes for which there must be room in the burst, or for which, where they are more
                than that, all of it must be free; 0: for nothing but a beginning.
        """
        room = BURST_BYTES - min(size, BURST_BYTES)
        return self._owed() <= room or self._bytes_per_second == 0

    def _owed(self) -> float:
        now = self._clock()
        self._owed_bytes -= self._bytes_per_second * (now - self._at)
        self._owed_bytes, self._at = max(0.0, self._owed_bytes), now
        return self._owed_bytes

    def _still_owed(self) -> float:
        if self._kept is None:
            return 0.0
        try:
            # A clock that was set back must not make the debt grow.
            age_seconds = max(0.0, time.time() - self._kept.stat().st_mtime)
            owed = int(self._kept.read_text())
        except (OSError, ValueError):
            return 0.0
        return max(0.0, owed - self._bytes_per_second * age_seconds)
