"""The learner as a child process: started with two pipes, and ended so that it surely ends."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from typing import IO

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


def start_child(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start it; None, and a line in the log, where that cannot be done."""
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
