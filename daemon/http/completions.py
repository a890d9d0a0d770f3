"""From the writer thread back to the requests that wait for it, a group at a time.

`asyncio.wrap_future` wakes the event loop once a request, a system call and two locks each, while
the loop competes with the writer for the interpreter. Here the first future of a group wakes the
loop, and the rest of the group is there when it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Completions:
    """Futures that another thread resolves, awaited on one event loop."""

    def __init__(self) -> None:
        self._resolved: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._woken = False

    async def of(self, future: Future[T]) -> T:
        """What `future` comes to.

        Raises:
            Exception: The future's.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()

        def resolved(done: Future[T]) -> None:
            # In this order, as `_settle` has the other: whatever it is too late to see wakes it.
            self._resolved.append((done, waiter))
            if not self._woken:
                self._woken = True
                loop.call_soon_threadsafe(self._settle)

        future.add_done_callback(resolved)
        return await waiter

    def _settle(self) -> None:
        self._woken = False
        while self._resolved:
            done, waiter = self._resolved.popleft()
            if waiter.done():  # the request was given up meanwhile
                continue
            error = done.exception()
            if error is None:
                waiter.set_result(done.result())
            else:
                waiter.set_exception(error)
