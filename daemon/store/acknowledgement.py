"""What waits for the writer: a thread that blocks, or an event loop that is woken once a group."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from daemon.errors import RequestError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Acknowledgement(Future[_T]):
    """What a thread may wait for and an event loop may await; a loop is woken once a group."""

    def __init__(self) -> None:
        super().__init__()
        self._waiter: asyncio.Future[None] | None = None
        # A client that hangs up cancels its wait; the writer must not trip over that.
        self.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, _T]:
        waiter = asyncio.get_running_loop().create_future()
        # Published before `done` is asked; the writer looks for it after it is done.
        self._waiter = waiter
        if not self.done():
            yield from waiter
        return self.result()

    @property
    def waiter(self) -> asyncio.Future[None] | None:
        """Of the loop that awaits it, if one does."""
        return self._waiter


def tell(acknowledgements: Sequence[Acknowledgement[Any]], results: Sequence[Any]) -> None:
    """Let go those who wait.

    Args:
        acknowledgements: Of one group.
        results: What each gets; a `RequestError` is raised there.
    """
    awaited: defaultdict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]
    awaited = defaultdict(list)
    for acknowledgement, result in zip(acknowledgements, results, strict=True):
        if isinstance(result, RequestError):
            acknowledgement.set_exception(result)
        else:
            acknowledgement.set_result(result)
        if (waiter := acknowledgement.waiter) is not None:
            awaited[waiter.get_loop()].append(waiter)
    for loop, waiters in awaited.items():
        _wake(loop, waiters)


def _wake(loop: asyncio.AbstractEventLoop, waiters: list[asyncio.Future[None]]) -> None:
    def wake() -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:  # the loop has ended, and with it all that waited there
        log.debug("nobody waits any more", extra={"waiters": len(waiters)})
