"""Threads that decode: what comes back, how many there are, and that the end waits for none."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from daemon.http.decode_threads import DecodeThreads

WAIT_SECONDS = 20


def test_results_and_errors_come_back() -> None:
    threads = DecodeThreads(1, "test")
    assert threads.submit(divmod, 7, 2).result(WAIT_SECONDS) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(WAIT_SECONDS)
    assert threads.submit(int, "9").result(WAIT_SECONDS) == 9


def test_no_more_run_at_once_than_there_are_threads_and_what_waits_may_be_cancelled() -> None:
    threads = DecodeThreads(2, "test")
    begun, hold = threading.Semaphore(0), threading.Event()

    def work() -> bool:
        begun.release()
        return hold.wait(WAIT_SECONDS)

    held = [threads.submit(work) for _ in range(2)]
    third, fourth = threads.submit(work), threads.submit(work)
    assert begun.acquire(timeout=WAIT_SECONDS)
    assert begun.acquire(timeout=WAIT_SECONDS)
    assert not third.running()
    assert third.cancel()
    hold.set()
    assert all(one.result(WAIT_SECONDS) for one in [*held, fourth])
    assert begun.acquire(timeout=WAIT_SECONDS)
    assert not begun.acquire(blocking=False)


def test_the_end_of_the_process_waits_for_no_decoder() -> None:
    program = (
        "import threading; from daemon.http.decode_threads import DecodeThreads\n"
        "begun = threading.Event()\n"
        "threads = DecodeThreads(1, 'test')\n"
        "threads.submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "print(begun.wait(20))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=3 * WAIT_SECONDS, check=True
    )
    assert ended.stdout == b"True\n"
