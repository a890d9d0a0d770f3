"""The power reader: a program that writes one JSON line a reading to standard output.

    python -m daemon.power_reader --interval 1 [--provider auto] [--sysfs /sys] ...

It takes the first of jtop, INA3221 and RAPL that works, says in every line why those before it do
not, and tries them again ever less often. With none of them a line has no power, yet what else is
known. It ends when its standard input closes, so it never outlives the server.

What is known lies in each line as the fields of `daemon.power_reading.PowerReading`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from daemon.power_provider import PROTOCOL, Fields, Provider, ProviderError, without_odd

PROVIDERS = ("jtop", "ina3221", "rapl")
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 30.0


class _HungError(BaseException):
    """A call did not return; no `except` but ours may take it for an error of its own."""


_LOST = (ProviderError, OSError, _HungError)

Opener = Callable[[], Provider]


def opening_seconds(interval_seconds: float) -> float:
    """How long a source may take to open: jtop's next sample may be an interval away.

    Args:
        interval_seconds: Between two readings.
    """
    return min(4 * interval_seconds + 1.5, interval_seconds + 5)


class PowerReader:
    """The readings, one after the other.

    Args:
        openers: How each source is opened, best first.
        fill: Adds what is known of any machine.
        interval_seconds: Between two readings.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        fill: Callable[[Fields], Fields],
        interval_seconds: float,
    ) -> None:
        self._openers = openers
        self._fill = fill
        self._interval_seconds = interval_seconds
        self._open_seconds = opening_seconds(interval_seconds)
        self._provider: Provider | None = None
        self._refused: dict[str, str] = {}
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        self._retry_at = self._due = time.monotonic()

    def read(self) -> Fields:
        """The next reading; without power when its source has just gone, or there is none."""
        if time.monotonic() >= self._retry_at:
            self._open_a_better_one()
        if self._provider is None or not self._provider.paced:
            time.sleep(max(self._due - time.monotonic(), 0.0))
            late = time.monotonic() - self._due >= self._interval_seconds
            # Beats that were missed are not made up for.
            self._due = (time.monotonic() if late else self._due) + self._interval_seconds
        fields: Fields = {}
        if self._provider is not None:
            try:
                with _deadline(4 * self._provider.interval_seconds):
                    fields = self._provider.read()
            except _LOST as error:
                self._lose(self._provider, error)
        return self._describe(fields)

    def _open_a_better_one(self) -> None:
        for name, opener in self._openers.items():
            if self._provider is not None and self._provider.name == name:
                break
            try:
                with _deadline(self._open_seconds):
                    better = opener()
            except _LOST as error:
                self._refused[name] = str(error) or type(error).__name__
                continue
            if self._provider is not None:
                self._provider.close()
            self._provider = better
            self._refused.pop(name, None)
            break
        if self._provider is not None and self._provider.name == next(iter(self._openers)):
            self._retry_at = float("inf")
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        else:
            self._retry_at = time.monotonic() + self._backoff_seconds
            self._backoff_seconds = min(2 * self._backoff_seconds, _LAST_BACKOFF_SECONDS)

    def _lose(self, provider: Provider, error: BaseException) -> None:
        self._refused[provider.name] = f"lost: {error or type(error).__name__}"
        self._provider = None
        self._retry_at = time.monotonic()
        try:
            with _deadline(self._open_seconds):
                provider.close()
        except _HungError:
            return

    def _describe(self, fields: Fields) -> Fields:
        provider = self._provider
        own = self._interval_seconds if provider is None else provider.interval_seconds
        return {
            "protocol": PROTOCOL,
            "monotonic_seconds": time.monotonic(),
            "provider": "none" if provider is None else provider.name,
            "interval_seconds": max(own, self._interval_seconds),
            "refused": self._refused,
            **without_odd(self._fill(fields)),
        }


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_HungError` in the main thread: no call of a hung service ever returns."""

    def expired(*_: object) -> None:
        raise _HungError(f"no answer within {seconds:g} s")

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def openers(
    provider: str, interval_seconds: float, sysfs: Path, jtop_socket: str
) -> dict[str, Opener]:
    """How the sources are opened that may be used, best first.

    Args:
        provider: One of `PROVIDERS`, `auto` for all of them, or `none`.
        interval_seconds: Between two readings.
        sysfs: Usually `/sys`.
        jtop_socket: Where jtop's service listens.
    """

    def open_jtop() -> Provider:
        from daemon.jtop_provider import JtopProvider

        return JtopProvider(interval_seconds, jtop_socket)

    def open_ina3221() -> Provider:
        from daemon.sysfs_provider import Ina3221Provider

        return Ina3221Provider(interval_seconds, sysfs)

    def open_rapl() -> Provider:
        from daemon.rapl_provider import RaplProvider

        return RaplProvider(interval_seconds, sysfs)

    every: dict[str, Opener] = dict(
        zip(PROVIDERS, (open_jtop, open_ina3221, open_rapl), strict=True)
    )
    return {name: opener for name, opener in every.items() if provider in (name, "auto")}


def main() -> None:
    """Read until standard input closes, or nobody reads."""
    parser = argparse.ArgumentParser(prog="daemon.power_reader", description=__doc__)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two readings")
    parser.add_argument("--provider", default="auto", choices=["auto", *PROVIDERS, "none"])
    parser.add_argument("--sysfs", type=Path, default=Path("/sys"))
    parser.add_argument("--procfs", type=Path, default=Path("/proc"))
    parser.add_argument("--jtop-socket", default="/run/jtop.sock")
    asked = parser.parse_args()
    # Ctrl-C, and a service manager's SIGTERM, reach the whole group; the server ends us in its own
    # time by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    # Readings own the real standard output; whatever a library prints goes to the log.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from daemon.sysfs_provider import HostFiles

    chosen = openers(asked.provider, asked.interval, asked.sysfs, asked.jtop_socket)
    reader = PowerReader(chosen, HostFiles(asked.sysfs, asked.procfs).fill, asked.interval)
    try:
        while True:
            lines.write(json.dumps(reader.read()) + "\n")
            lines.flush()
    except BrokenPipeError:
        os._exit(0)


def _end_with_the_server() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # At once: jtop's client has crashed the interpreter's ordinary end.
    os._exit(0)


if __name__ == "__main__":
    main()
