"""How much the learner may write: the memory cards that it lives on wear out by it.

Each candidate is a file of its own and a whole checkpoint, 12 MB together for the default network;
one every two seconds is 500 GB a day, and a card of 64 GB lasts a few months of that. So what is
written is owed, the debt falls at a steady rate, and while it is high nothing is proposed that
nobody has asked for (a leaky bucket, Turner 1986). Samples wait in the store; none is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Written at once after a time of rest, as when a daemon is tried out.
BURST_BYTES = 64 << 20


class WriteAllowance:
    """Counts what is written.

    Args:
        bytes_per_second: At most, on average; 0: no limit.
        clock: Seconds that only grow.
    """

    def __init__(
        self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.written_bytes = 0
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._owed_bytes, self._at = 0.0, clock()

    def wrote(self, size: int) -> None:
        """So many bytes more, whoever wanted them."""
        self.written_bytes += size
        self._owed_bytes = self._owed() + size

    def allows(self, size: int = 0) -> bool:
        """Whether something may be written that can wait.

        Args:
            size: Bytes for which there must be room in the burst; 0: for nothing but a beginning.
        """
        return self._owed() + size <= BURST_BYTES or self._bytes_per_second == 0

    def _owed(self) -> float:
        now = self._clock()
        self._owed_bytes -= self._bytes_per_second * (now - self._at)
        self._owed_bytes, self._at = max(0.0, self._owed_bytes), now
        return self._owed_bytes
