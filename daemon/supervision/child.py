"""The learner as a child process: started with two pipes, and ended so that it surely ends."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """The child's first act: from here on the kernel kills it when its parent ends.

    A closed input is seen between two steps at the earliest, so that after `kill -9` of the server
    a learner would go on with a long step, and with a file that it writes. To the kernel the
    parent is the thread that started us. That is the supervisor's, which ends after its learner in
    an orderly stop, too.

    Raises:
        SystemExit: The parent has ended already.
    """
    with contextlib.suppress(AttributeError):  # not Linux: the closed input has to do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    # A process gives up its files before the kernel tells its children: a parent that ended too
    # early to be noticed has left our input without a writer.
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)
    if any(events & select.POLLHUP for _, events in poll.poll(0)):
        sys.exit(0)


def start_child(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start it; None, and a line in the log, where that cannot be done.

    It lives no longer than the thread that calls this.
    """
    try:
        return subprocess.Popen([*command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
    except OSError as error:
        log.error("learner cannot be started", extra={"why": str(error)})
        return None


def end_child(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Close the pipes, so that it ends by itself, and make sure that it does.

    Returns:
        Its exit status, and whether it had to be killed.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            close_pipe(pipe)
    return wait_or_kill(process)


def wait_or_kill(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Its exit status, and whether it had to be killed for it."""
    try:
        return process.wait(_STOP_SECONDS), False
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), True


def close_pipe(pipe: IO[bytes]) -> None:
    """Close our end of a pipe whose other end may be gone."""
    try:
        pipe.close()
    except OSError:  # what was buffered cannot reach a learner that is gone
        log.debug("learner was gone already")
