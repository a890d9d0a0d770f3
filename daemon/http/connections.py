"""What all connections share: their limits, how many there are, and the hand that goes round.

Deadlines are kept as a time in each connection and looked at by one timer for all: setting one
costs a request an attribute, and a thousand connections cost the timer a tenth of a millisecond.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

NEVER = float("inf")


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Args:
        header_seconds: For a request's headers, from the first byte or the opening of the
            connection.
        body_seconds: For all of its body, from the end of the headers; and for a client to read
            half of what is left of an answer.
        idle_seconds: Between two requests.
        connections: Open at once, from everywhere.
        address_connections: Open at once, from one address.
        ingest_requests: Posts of samples whose body has arrived, answered at once.
        header_bytes: Of a request line and all headers.
        headers: Of a request.
        message_bytes: Of a request as it comes over the wire, one that is refused included: so much
            of a body is read and thrown away in order that its sender gets the answer.
        body_bytes: Of bodies that are in memory at once, in all; only small ones go beyond it.
        linger_seconds: How long a connection that was refused waits for its client to read why.
    """

    header_seconds: float = 10.0
    body_seconds: float = 15.0
    idle_seconds: float = 60.0
    connections: int = 512
    address_connections: int = 256
    ingest_requests: int = 128
    header_bytes: int = 16 << 10
    headers: int = 100
    message_bytes: int = 64 << 20
    body_bytes: int = 64 << 20
    linger_seconds: float = 1.0


class Expiring(Protocol):
    """A connection, as the hand sees it."""

    deadline: float

    def expire(self) -> None:
        """Do what is due when the deadline has passed."""


class Connections:
    """The connections of one server.

    Args:
        limits: Theirs.
        refused: Told the reason of every refusal.
        is_full: Whether the store has no room for more samples now.
    """

    def __init__(
        self,
        limits: Limits,
        refused: Callable[[str], None] = lambda reason: None,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.limits = limits
        self.refused = refused
        self.ingesting = 0
        self.body_bytes = 0
        self.draining = False
        self._is_full = is_full
        self._open: set[Expiring] = set()
        self._addresses: Counter[str] = Counter()
        shortest = min(limits.header_seconds, limits.body_seconds, limits.linger_seconds)
        self._period = min(0.5, shortest / 4)
        self._hand: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Expiring, address: str, loop: asyncio.AbstractEventLoop) -> None:
        """A connection was opened."""
        self._open.add(connection)
        self._addresses[address] += 1
        if self._hand is None:
            self._hand = loop.call_later(self._period, self._go_round, loop)

    def remove(self, connection: Expiring, address: str) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def of(self, address: str) -> int:
        """How many an address has."""
        return self._addresses[address]

    @property
    def overloaded(self) -> bool:
        """Whether another post of samples would only wait."""
        return self.ingesting >= self.limits.ingest_requests or self._is_full()

    @property
    def crowded(self) -> bool:
        """Whether bodies take all the memory that they may."""
        return self.body_bytes >= self.limits.body_bytes

    def drain(self, now: float) -> None:
        """The server stops: nobody waits any longer for what a client still has to send."""
        self.draining = True
        for connection in self._open:
            connection.deadline = min(connection.deadline, now)

    def _go_round(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [one for one in self._open if one.deadline <= now]:
            connection.expire()
        # Nothing keeps the loop busy once the last connection has gone.
        self._hand = loop.call_later(self._period, self._go_round, loop) if self._open else None
