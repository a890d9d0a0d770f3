"""Clients that post, repeat, and go on after every death of the daemon.

Each client has one request on its way: a sample or a batch, JSON or NDJSON, named by ids or by an
`Idempotency-Key`. Three of ten are sent a second time after their answer, which must then be the
same; one whose answer did not come before the daemon died is sent again to the next one, since only
so can a client know that it arrived once. What is acknowledged goes into the ledger.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.torture.ledger import Ledger, features_of, label_of

CLIENTS = 8
_REPEATED = 0.3
_MISUSED = 0.02
_OTHER = 1 << 60
NAMED = 0.6
_DEAD = (OSError, http.client.HTTPException)


def sample_body(number: int, name: str | None) -> dict[str, Any]:
    """The JSON of a harness's sample."""
    body: dict[str, Any] = {"x": list(features_of(number)), "label": label_of(number)}
    return body if name is None else body | {"id": name}


@dataclass
class Request:
    """One request, the same bytes however often it is sent."""

    numbers: list[int]
    ids: list[str] | None
    headers: dict[str, str]
    body: bytes
    answer: list[str] | None = None

    @classmethod
    def made(cls, numbers: list[int], *, named: bool, lines: bool, name: str) -> Request:
        """A request for samples `numbers`.

        Args:
            numbers: Which samples.
            named: By ids in the body; else by a key, and the ids are the store's.
            lines: As NDJSON.
            name: Unique among all requests.
        """
        ids = [f"k-{name}-{n}" for n in numbers] if named else None
        bodies = [
            sample_body(number, ids[place] if ids else None) for place, number in enumerate(numbers)
        ]
        headers = {"Content-Type": "application/x-ndjson" if lines else "application/json"}
        if not named:
            headers["Idempotency-Key"] = name
        if lines:
            body = "\n".join(map(json.dumps, bodies))
        else:
            body = json.dumps(bodies[0] if len(bodies) == 1 else {"samples": bodies})
        return cls(numbers, ids, headers, body.encode())


@dataclass
class Client:
    """One client; it outlives daemons.

    Args:
        name: Unique among clients.
        ledger: Where acknowledgements go.
        seed: Of its choices.
    """

    name: int
    ledger: Ledger
    seed: int
    wrong: list[str] = field(default_factory=list)
    posts: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._choose = random.Random(f"{self.seed}-{self.name}")
        self._made = 0
        self._pending: Request | None = None

    def post_until(self, port: int, stop: threading.Event, most: int | None = None) -> None:
        """Post until the daemon dies, `stop` is set, or `most` posts are answered."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        end = None if most is None else self.posts + most
        try:
            while not stop.is_set() and (end is None or self.posts < end):
                self._pending = self._pending or self._next()
                status, answer = self._send(connection, self._pending)
                if status >= 500:
                    code = answer.get("code", "?")
                    self.refused[code] = self.refused.get(code, 0) + 1
                    if stop.wait(0.02):
                        return
                    continue
                self._check(self._pending, status, answer)
                repeat = self._pending.answer is None and self._choose.random() < _REPEATED
                self._pending.answer = answer.get("ids")
                if not repeat:
                    if self._choose.random() < _MISUSED:
                        self._misuse(connection, self._pending)
                    self._pending = None
        except _DEAD:
            return
        finally:
            connection.close()

    def _misuse(self, connection: http.client.HTTPConnection, request: Request) -> None:
        """The same key, or the same id, with other content: refused, and nothing changes."""
        body = sample_body(request.numbers[0] + _OTHER, request.ids[0] if request.ids else None)
        headers = {**request.headers, "Content-Type": "application/json"}
        other = Request(request.numbers[:1], None, headers, json.dumps(body).encode())
        status, answer = self._send(connection, other)
        wanted = (409, "id_conflict") if request.ids else (422, "key_reused")
        if status < 500 and (status, answer.get("code")) != wanted:
            self.wrong.append(f"other content was answered {status} {answer.get('code')}")

    def _send(self, connection: http.client.HTTPConnection, request: Request) -> tuple[int, Any]:
        connection.request("POST", "/samples", request.body, request.headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def _check(self, request: Request, status: int, answer: dict[str, Any]) -> None:
        self.posts += 1
        if status != 201:
            self.wrong.append(f"answered {status} {answer.get('code')}")
            return
        ids = answer["ids"]
        if request.answer is None:
            if not self.ledger.acknowledged(ids, request.numbers, answer.get("first_seq")):
                raise ConnectionError("told by a machine that has no power")
        elif ids != request.answer:
            self.wrong.append("a repeated request was given other ids")

    def _next(self) -> Request:
        count = 1 if self._choose.random() < 0.7 else self._choose.randrange(2, 17)
        first = (self.name << 40) + (self._made << 8)
        self._made += 1
        return Request.made(
            [first + place for place in range(count)],
            named=self._choose.random() < NAMED,
            lines=count > 1 and self._choose.random() < 0.5,
            name=f"{self.name}-{self._made}",
        )


class Load:
    """Eight clients on one daemon after the other."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.clients = [Client(name, ledger, seed) for name in range(CLIENTS)]
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._stop = threading.Event()
        self._work: list[Any] = []

    def start(self, port: int, most: int | None = None) -> None:
        """Begin to post; `most` is for each client."""
        self._stop.clear()
        self._work = [
            self._pool.submit(client.post_until, port, self._stop, most) for client in self.clients
        ]

    def join(self, seconds: float = 60.0) -> None:
        """Wait until every client has ended by itself, as it does when the daemon dies."""
        for work in self._work:
            work.result(seconds)

    def stop(self) -> None:
        """Have every client end after the answer it waits for."""
        self._stop.set()
        self.join()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown()

    @property
    def posts(self) -> int:
        return sum(client.posts for client in self.clients)

    @property
    def wrong(self) -> list[str]:
        """Answers that must not be."""
        return [text for client in self.clients for text in client.wrong]

    @property
    def refused(self) -> dict[str, int]:
        """How often each 5xx code was answered."""
        total: dict[str, int] = {}
        for client in self.clients:
            for code, times in client.refused.items():
                total[code] = total.get(code, 0) + times
        return total
