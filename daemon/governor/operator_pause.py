"""An operator's pause: it outlives the learner and the daemon, until it is ended or its time is up.

It is a small file beside the samples, so that it holds although the store is not open. Time is the
machine's monotonic clock, which a daemon that starts again shares; after a boot, which begins that
clock anew, a pause with an end lasts its whole length once more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from daemon.durable import replace_file, sync_folder

log = logging.getLogger(__name__)

FILE_NAME = "learning-paused.json"


class Pause(msgspec.Struct, frozen=True):
    """What the file holds.

    Args:
        reason: An operator's words.
        seconds: How long it was to last; None: until it is ended.
        until: When it ends, in seconds of the monotonic clock; None likewise.
        boot: Which boot of the machine that clock is of.
    """

    reason: str
    seconds: float | None
    until: float | None
    boot: str


class OperatorPause:
    """The pause that holds now, if one does.

    Args:
        folder: Where its file is, or will be.
        clock: Seconds since the machine's boot.
        boot: Names the boot; None: as the kernel does.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic, boot: str | None = None
    ) -> None:
        self._path = folder / FILE_NAME
        self._clock = clock
        self._boot = _boot_id() if boot is None else boot
        self._pause = self._restored()

    def current(self) -> Pause | None:
        """The pause; None where there is none, or its time is up."""
        pause = self._pause
        if pause is not None and pause.until is not None and self._clock() >= pause.until:
            self.end()
            return None
        return pause

    def begin(self, reason: str, seconds: float | None) -> bool:
        """Pause from now on, in place of a pause that holds.

        Args:
            reason: An operator's words.
            seconds: How long; None: until it is ended.

        Returns:
            Whether it would outlive the daemon.
        """
        until = None if seconds is None else self._clock() + seconds
        self._pause = Pause(reason, seconds, until, self._boot)
        return self._kept(lambda: replace_file(self._path, msgspec.json.encode(self._pause)))

    def end(self) -> bool:
        """Pause no longer; harmless where no pause holds.

        Returns:
            Whether it would stay ended after a restart.
        """
        self._pause = None

        def remove() -> None:
            if self._path.exists():
                self._path.unlink()
                sync_folder(self._path.parent)

        return self._kept(remove)

    def left_seconds(self, pause: Pause) -> float | None:
        """How long it still lasts; None: until it is ended."""
        return None if pause.until is None else max(0.0, pause.until - self._clock())

    def _kept(self, change: Callable[[], object]) -> bool:
        try:
            change()
        except OSError as error:
            log.error("an operator's pause is not kept on disk", extra={"why": str(error)})
            return False
        return True

    def _restored(self) -> Pause | None:
        try:
            pause = msgspec.json.decode(self._path.read_bytes(), type=Pause)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            # To learn although nobody may is worse than to wait for somebody to look.
            log.error("an operator's pause cannot be read: it holds", extra={"why": str(error)})
            return Pause("its file cannot be read", None, None, self._boot)
        log.warning("learning is paused by an operator", extra={"reason": pause.reason})
        if pause.seconds is None or (pause.boot == self._boot and pause.until is not None):
            return pause
        return msgspec.structs.replace(pause, until=self._clock() + pause.seconds, boot=self._boot)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: every start counts as a boot
        return f"started {time.monotonic()}"
