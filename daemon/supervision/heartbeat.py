"""When the learner was last heard, and the thread that kills one which hangs.

The thread that hears the learner cannot watch it as well: it may be judging a candidate for
minutes. So another looks, and kills a learner that has said nothing for longer than it may. SIGKILL
reaches one that is stopped, too.
"""

from __future__ import annotations

import logging
import select
import subprocess
import threading
import time
from collections.abc import Callable

from daemon.supervision.exits import Reason

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Looks as a share of what silence is allowed, for who sets that very low.
_LOOKS = 10
# From a learner's start to its being ready, while it says nothing: Python and torch are read from
# a slow disk. A start that was killed for it doubles that for those to come: how long a slow card
# takes nobody knows, and so every start that ends gets through at last, while one that really
# hangs, as happens now and then, is found within a minute and not within the slowest card's time.
_START_SECONDS = 60.0
_LONGEST_START_SECONDS = 960.0
# A silence that is worth a word, long before it is certain that the learner hangs.
_LONG_SECONDS = 10.0


class Heartbeat:
    """The last sign of life, and how long none other need follow it."""

    def __init__(self) -> None:
        self._heard = (time.monotonic(), 0.0)
        self._start_seconds = _START_SECONDS

    def started(self) -> None:
        """A learner was started, and may be silent for as long as a start may take."""
        self.heard(self._start_seconds)

    def start_was_cut(self) -> None:
        """It was killed before it was ready: the next ones may take longer."""
        self._start_seconds = min(2 * self._start_seconds, _LONGEST_START_SECONDS)

    def heard(self, may_be_silent: float = 0.0) -> None:
        """Note a sign of life.

        Args:
            may_be_silent: None other is due for so many seconds.
        """
        self._heard = (time.monotonic(), may_be_silent)

    @property
    def seconds_ago(self) -> float:
        """Since the last sign of life."""
        return time.monotonic() - self._heard[0]

    def overdue(self, seconds: float) -> bool:
        """Whether the silence is longer than it may be.

        Args:
            seconds: For how long silence means nothing, where the learner has no reason for more.
        """
        heard, may_be_silent = self._heard
        return time.monotonic() - heard > max(seconds, may_be_silent)


class HangWatch:
    """Looks at one learner after the other, and kills each that hangs.

    Args:
        heartbeat: Says since when it is silent.
        hang_seconds: How long silence means nothing.
        excused: Whether it waits for us; then it need not say anything.
    """

    def __init__(
        self, heartbeat: Heartbeat, hang_seconds: float, excused: Callable[[], bool]
    ) -> None:
        self._heartbeat = heartbeat
        self._hang_seconds = hang_seconds
        self._excused = excused
        self._every = min(_LOOK_SECONDS, hang_seconds / _LOOKS)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: Reason | None = None
        self._stopping = threading.Event()
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="learner-watch", daemon=True)

    @property
    def seconds_since_look(self) -> float:
        """How long ago it looked: proof that it does."""
        return time.monotonic() - self._looked

    @property
    def silence(self) -> str | None:
        """That the learner has said nothing for long, without a reason; None: it is heard."""
        if self._excused() or not self._heartbeat.overdue(_LONG_SECONDS):
            return None
        return f"the learner has said nothing for {self._heartbeat.seconds_ago:.0f} s"

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is watched is left as it is."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """From here on look at this one, whose reports nobody else reads past `Heartbeat`."""
        with self._lock:
            self._process, self._killed = process, None

    def release(self) -> Reason | None:
        """Look at none; why the one that was watched has been killed, if it was."""
        with self._lock:
            self._process = None
            return self._killed

    def kill(self, reason: Reason) -> bool:
        """Kill the one that is watched, whatever it does.

        Returns:
            Whether there was one.
        """
        with self._lock:  # so that no process id is signalled after it was given back
            process = self._process
            if process is None or self._killed or process.poll() is not None:
                return False
            self._killed = reason
            process.kill()
            return True

    def _run(self) -> None:
        while not self._stopping.wait(self._every):
            self._looked = time.monotonic()
            with self._lock:
                process = self._process
                if process is None or self._killed or process.poll() is not None:
                    continue
                if self._excused() or not self._heartbeat.overdue(self._hang_seconds):
                    continue
                if _unheard(process):  # we are late, not the learner
                    continue
                self._killed = "hang"
                silent = round(self._heartbeat.seconds_ago, 1)
                log.error("learner hangs", extra={"pid": process.pid, "silent_seconds": silent})
                process.kill()


def _unheard(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has said something that was not read yet."""
    if process.stdout is None or process.stdout.closed:
        return False
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
