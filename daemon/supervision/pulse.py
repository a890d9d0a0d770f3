"""Whether parts of the server get on: each is sent a task that does nothing, and has to do it.

A thread that exists proves nothing, nor does one that has nothing to do. What a part has done
meanwhile counts as well: one with a long queue gets to our task late, and is well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pulse:
    """One part.

    Args:
        send: Has it do nothing; the future is done once it has. Raises RuntimeError once the part
            has been shut down.
        done: How many tasks it has done, ever.
    """

    def __init__(
        self, send: Callable[[], Future[Any]], done: Callable[[], int] = lambda: 0
    ) -> None:
        self._send, self._done = send, done
        self._task: Future[Any] | None = None
        self._seen = done()
        self._proven = time.monotonic()

    def beats(self, seconds: float) -> bool:
        """Whether it has got on within so many seconds; to be asked at least as often."""
        now, done = time.monotonic(), self._done()
        if self._task is None or self._task.done() or done != self._seen:
            self._proven, self._seen = now, done
        if self._task is None or self._task.done():
            try:
                self._task = self._send()
            except RuntimeError:
                return False
        return now - self._proven <= seconds


class PredictThread(ThreadPoolExecutor):
    """The one thread that computes predictions."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="predict")
        self.done = 0

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """See `Executor.submit`."""
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Any]) -> None:
        if not future.cancelled():  # by a client that hung up: nothing was computed
            self.done += 1
