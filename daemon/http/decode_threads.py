"""A few threads that decode bodies, and that nothing waits for at the end.

Those of `concurrent.futures` are joined when the interpreter ends: a picture that is still being
decoded would hold up the stop of the daemon.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], Any]]


class DecodeThreads(Executor):
    """See the module; they start with the first call.

    Args:
        count: How many, and so how many bodies are decoded at once; more wait.
        name: Theirs.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False

    def submit(self, fn: Callable[..., _T], /, *args: object, **kwargs: object) -> Future[_T]:
        """See `concurrent.futures.Executor`."""
        with self._lock:
            if not self._started:
                self._started = True
                for number in range(self._count):
                    name = f"{self._name}_{number}"
                    threading.Thread(target=self._run, name=name, daemon=True).start()
        future: Future[_T] = Future()
        self._work.put((future, functools.partial(fn, *args, **kwargs)))
        return future

    def _run(self) -> None:
        while True:
            _do(*self._work.get())


def _do(future: Future[Any], call: Callable[[], Any]) -> None:
    # A function of its own, so that nothing of a request is held while the thread waits.
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
        future.set_exception(error)
    else:
        future.set_result(result)
