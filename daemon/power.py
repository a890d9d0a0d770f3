"""The server's end of the power reader: starts it, hears it, and starts it again.

One thread. Whatever the reader does (ends, hangs, lies, is of another version) costs no request:
readings are then absent, and come back by themselves.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import daemon
from daemon.config import PowerSettings
from daemon.energy import Energy, EnergyMeter
from daemon.power_log import PowerLog
from daemon.power_reading import PowerReading, ReadingRefusedError, decode_reading

log = logging.getLogger(__name__)

_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 5.0
_LAST_BACKOFF_UNHEARD_SECONDS = 60.0  # of a reader that has never given a line
_REPEAT_SECONDS = 60.0  # between two log lines that say the same
# A first line may wait for an interpreter, for each source to hang while it is opened (see
# `opening_seconds` of the reader), and for the last of them to be read.
_START_SECONDS = 25.0
_START_INTERVALS = 8
_WITHIN_SECONDS = 3.0  # a line later than its interval: a source that hangs is given up meanwhile
_EXIT_SECONDS = 1.0  # to end by itself, its output being closed
_STOP_SECONDS = 5.0
_LONGEST_LINE_BYTES = 64 << 10
_MOST_REFUSED = 3
# A reading is shown, and power between two readings known, for so many of our intervals, or of a
# source's that is slower than we asked it to be.
_FRESH_INTERVALS = 5
_FRESH_SLOW_INTERVALS = 2
_SLOWEST = 10  # of our intervals; a source that claims more is not waited for
# The least time between two lines: a reader that floods us waits for its pipe.
_LINE_SECONDS = 0.02

# The reader may run in an interpreter that does not have this package, and must then find this
# one alone: nothing else that lies beside it may be taken for the other interpreter's own.
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from daemon import power_reader; "
_BOOT += "del sys.path[0]; power_reader.main()"


def reader_command(settings: PowerSettings) -> list[str]:
    """Command line of the power reader."""
    return [
        settings.reader_python or sys.executable,
        "-c",
        _BOOT,
        str(Path(daemon.__file__).parents[1]),
        f"--interval={settings.interval_seconds}",
        f"--provider={settings.provider}",
        f"--sysfs={settings.sysfs}",
        f"--jtop-socket={settings.jtop_socket}",
    ]


class PowerMonitor:
    """What is known of the board's power, memory and temperature.

    Args:
        command: Command line of the power reader.
        interval_seconds: Between two readings, as it was asked for.
        power_log: Keeps readings that have power.
    """

    def __init__(
        self, command: Sequence[str], interval_seconds: float, power_log: PowerLog
    ) -> None:
        self.log = power_log
        self.refused: Counter[str] = Counter()
        self.restarts = 0
        self._meter = EnergyMeter()
        self._command = list(command)
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._newest: PowerReading | None = None
        self._told: tuple[str, dict[str, str]] | None = None
        self._ended: str | None = None
        self._logged: tuple[str, float] = "", 0.0
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="power-reader")

    @property
    def newest(self) -> PowerReading | None:
        """The newest reading of all, however old."""
        return self._newest

    @property
    def reading(self) -> PowerReading | None:
        """The newest reading; None when it is too old to say anything of now."""
        newest = self._newest
        if newest is None:
            return None
        age_seconds = time.monotonic() - newest.monotonic_seconds
        return newest if age_seconds <= self._fresh_seconds(newest) else None

    @property
    def up(self) -> bool:
        """Whether it is known what the board takes in now."""
        reading = self.reading
        return reading is not None and reading.watts is not None

    def sources(self) -> dict[str, Any]:
        """Where readings come from, and why not from a better source, as clients see it.

        `reader` is why the reader ended, until there is a reading again.
        """
        newest = self._newest
        return {
            "up": self.up,
            "provider": None if newest is None else newest.provider,
            "refused": {} if newest is None else newest.refused,
            "reader": self._ended,
        }

    @property
    def pid(self) -> int | None:
        """The reader's process id while it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> None:
        """Start the reader and the log."""
        self.log.start()
        self._thread.start()

    def stop(self) -> None:
        """End the reader, which has nothing to lose, and the log."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.kill()
        self._thread.join()
        self.log.stop()

    def learning_began(self) -> None:
        """The learner goes to work: what the board takes from now on is learning's."""
        with self._lock:
            self._meter.learning.begin(time.monotonic())

    def learning_held(self) -> None:
        """The learner stands still in the middle of a job, until `learning_began`."""
        with self._lock:
            self._meter.learning.end(time.monotonic())

    def learning_ended(self, samples: int, *, accepted: bool) -> None:
        """The learner is done with a job.

        Args:
            samples: New ones that it learned.
            accepted: Whether a version came of it that serves.
        """
        with self._lock:
            self._meter.learning.end(time.monotonic())
            self._meter.learned(samples, int(accepted))

    def learning_joules(self) -> float | None:
        """Energy while the learner was at work, up to this moment.

        Returns:
            None while the board's power is not known.
        """
        if not self.up:
            return None
        with self._lock:
            return self._meter.learning_until(time.monotonic())

    def energy(self) -> Energy:
        """What has been used so far."""
        with self._lock:
            return self._meter.energy()

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            before = self._newest
            why = self._run_once()
            if self._stopping.is_set():
                return
            if self._newest is not before:
                backoff = _FIRST_BACKOFF_SECONDS
            else:
                why += f", without a reading; it is run by {self._command[0]} (power.reader_python)"
            self._ended = why
            self.restarts += 1
            self._log_end(why, backoff)
            self._stopping.wait(backoff)
            unheard = self._newest is None
            longest = _LAST_BACKOFF_UNHEARD_SECONDS if unheard else _LAST_BACKOFF_SECONDS
            backoff = min(2 * backoff, longest)

    def _log_end(self, why: str, restart_seconds: float) -> None:
        before, at = self._logged
        now = time.monotonic()
        if why != before or now - at >= _REPEAT_SECONDS:
            self._logged = why, now
            extra = {"why": why, "restart_seconds": restart_seconds}
            log.warning("power reader ended", extra=extra)

    def _run_once(self) -> str:
        """Start a reader and hear it until it ends, or has to; why it did."""
        # Unset: it would take away the place in the path that the program is found by.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            return f"cannot be started: {error}"
        self._process = process
        try:
            if not self._stopping.is_set():
                log.info("power reader started", extra={"pid": process.pid})
                self._hear_all(process)
            return f"exit code {process.wait(_EXIT_SECONDS)}"
        except (_UnfitError, OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        except Exception:
            # Whatever one reader says, the next one is heard: this thread must not end.
            log.exception("hearing the power reader failed")
            return "hearing it failed"
        finally:
            _end(process)

    def _hear_all(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        refused_in_a_row = 0
        for line in _lines(process.stdout, self._patience_seconds):
            try:
                self._hear(line)
                refused_in_a_row = 0
            except ReadingRefusedError as error:
                self.refused[error.reason] += 1
                refused_in_a_row += 1
                if refused_in_a_row == 1:
                    log.warning("power reading refused", extra={"why": str(error)})
                elif refused_in_a_row == _MOST_REFUSED:
                    raise _UnfitError(f"{_MOST_REFUSED} lines in a row were no readings") from error
            self._stopping.wait(_LINE_SECONDS)

    def _patience_seconds(self, lines: int) -> float:
        """How long the next line may take."""
        if not lines:
            return _START_SECONDS + _START_INTERVALS * self._interval_seconds
        return self._fresh_seconds(self._newest) + _WITHIN_SECONDS

    def _fresh_seconds(self, reading: PowerReading | None) -> float:
        own = self._interval_seconds
        theirs = own if reading is None else min(reading.interval_seconds, _SLOWEST * own)
        return max(_FRESH_INTERVALS * own, _FRESH_SLOW_INTERVALS * theirs)

    def _hear(self, line: bytes) -> None:
        newest = self._newest
        after = 0.0 if newest is None else newest.monotonic_seconds
        reading = decode_reading(line, after=after, now=time.monotonic())
        self._newest, self._ended = reading, None
        told = reading.provider, reading.refused
        if told != self._told:
            self._told = told
            extra = {"provider": reading.provider, "refused": reading.refused}
            log.info("power provider chosen", extra=extra)
        if reading.watts is not None:
            gap_seconds = self._fresh_seconds(reading)
            with self._lock:
                self._meter.add(
                    reading.monotonic_seconds,
                    reading.watts,
                    reading.rails,
                    gap_seconds,
                    mean=reading.mean,
                )
            self.log.add(reading)


class _UnfitError(Exception):
    """The reader has to be ended."""


def _lines(pipe: IO[bytes], patience_seconds: Callable[[int], float]) -> Iterator[bytes]:
    """Lines from an unbuffered pipe until its end.

    Args:
        pipe: Read from.
        patience_seconds: How long the next line may take, by how many came before.

    Raises:
        _UnfitError: A line took too long, or was.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    rest, lines = b"", 0
    limit = time.monotonic() + patience_seconds(lines)
    while True:
        left = limit - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise _UnfitError("no line came in time")
        if not (part := pipe.read(_LONGEST_LINE_BYTES)):
            return
        *complete, rest = (rest + part).split(b"\n")
        if len(rest) > _LONGEST_LINE_BYTES:
            raise _UnfitError(f"a line is longer than {_LONGEST_LINE_BYTES} bytes")
        for line in complete:
            yield line
            lines += 1
            limit = time.monotonic() + patience_seconds(lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:  # stuck in the kernel, on a bus; it ends when that does
        log.error("power reader does not die", extra={"pid": process.pid})
