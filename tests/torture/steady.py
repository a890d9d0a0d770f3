"""A steady load for as long as it takes: samples that arrive, and predictions, both open loop.

Each request has its planned moment, whatever became of the one before, and is as late as its answer
is after that moment: a server that stands still cannot hide it by asking less.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.torture.ledger import FEATURES, Ledger
from tests.torture.load import Request

_PREDICT_SECONDS = 0.02
_POST_SECONDS = 0.1
_POST_SAMPLES = 16
_TIMEOUT_SECONDS = 30


class SteadyLoad:
    """Two clients of one daemon, each on a thread of its own.

    Args:
        port: The daemon's, on loopback.
        ledger: Where acknowledgements go.
    """

    def __init__(self, port: int, ledger: Ledger) -> None:
        self._port = port
        self._ledger = ledger
        self._stop = threading.Event()
        self._made = 0
        self.acknowledged = 0
        self.predict_seconds: list[float] = []
        self.failed: list[str] = []  # predictions
        self.wrong: list[str] = []  # posts
        self._predict = json.dumps({"x": [1] * FEATURES}).encode()
        self._threads = [
            threading.Thread(target=self._each, args=(_PREDICT_SECONDS, self._ask, self.failed)),
            threading.Thread(target=self._each, args=(_POST_SECONDS, self._post, self.wrong)),
        ]

    def __enter__(self) -> SteadyLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _each(
        self,
        seconds: float,
        request: Callable[[http.client.HTTPConnection, float], None],
        failures: list[str],
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        planned = time.monotonic()
        while not self._stop.wait(max(0.0, planned - time.monotonic())):
            try:
                request(connection, planned)
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                connection.close()
            planned += seconds
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, planned: float) -> None:
        headers = {"Content-Type": "application/json"}
        status, answer = self._send(connection, "/predict", self._predict, headers)
        self.predict_seconds.append(time.monotonic() - planned)
        if status != 200 or "model_version" not in answer:
            self.failed.append(f"answered {status} {answer.get('code')}")

    def _post(self, connection: http.client.HTTPConnection, _: float) -> None:
        first = self._made << 8
        self._made += 1
        numbers = [first + place for place in range(_POST_SAMPLES)]
        request = Request.made(numbers, named=True, lines=False, name=f"steady-{self._made}")
        status, answer = self._send(connection, "/samples", request.body, request.headers)
        if status != 201:
            self.wrong.append(f"answered {status} {answer.get('code')}")
            return
        self._ledger.acknowledged(answer["ids"], numbers, answer["first_seq"])
        self.acknowledged += len(numbers)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        headers: dict[str, str],
    ) -> tuple[int, Any]:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
