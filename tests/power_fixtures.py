"""Readings, fake boards and the real jtop, for the tests of power."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2

from daemon.config import PowerSettings
from daemon.power import reader_command
from daemon.power_provider import PROTOCOL
from daemon.power_reading import PowerReading, decode_reading
from tests.running import wait_for

FEATURES = 6


def reading(**changes: Any) -> PowerReading:
    plain = {
        "protocol": PROTOCOL,
        "monotonic_seconds": 1.0,
        "provider": "jtop",
        "interval_seconds": 1.0,
        "refused": {},
        "watts": 7.0,
    }
    return PowerReading(**(plain | changes))


class ReaderProcess:
    """The power reader as the server starts it, its lines in `lines`.

    Args:
        options: Of the interpreter.
        settings: `[power]`.
    """

    def __init__(self, *options: str, environment: dict[str, str] | None = None, **settings: Any):
        python, *rest = reader_command(PowerSettings(**({"interval_seconds": 0.1} | settings)))
        self.process = subprocess.Popen(
            [python, *options, *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | (environment or {}),
        )
        self.lines: list[bytes] = []
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()

    def next(self, wanted: Callable[[PowerReading], object], what: str) -> PowerReading:
        """The first reading from now on that is wanted."""
        seen = len(self.lines)

        def found() -> PowerReading | None:
            new = [self.decoded(line) for line in self.lines[seen:]]
            return next((reading for reading in new if wanted(reading)), None)

        return wait_for(found, what, seconds=20)

    @staticmethod
    def decoded(line: bytes) -> PowerReading:
        return decode_reading(line, after=0.0, now=time.monotonic())


class Clients:
    """Posts samples and asks for predictions without a pause; every answer is kept."""

    def __init__(self, address: str) -> None:
        self.answers: list[int | str] = []
        self._stopping = threading.Event()
        self._address = address
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx2.Client(base_url=self._address, timeout=10) as client:
            while not self._stopping.wait(0.02):
                x = [float(len(self.answers) % 7 + i) for i in range(FEATURES)]
                for path, body in (("/samples", {"x": x, "label": 1}), ("/predict", {"x": x})):
                    try:
                        self.answers.append(client.post(path, json=body).status_code)
                    except httpx2.HTTPError as error:
                        self.answers.append(repr(error))

    def all_were_answered(self) -> bool:
        return len(self.answers) >= 20 and set(self.answers) == {200, 201}
