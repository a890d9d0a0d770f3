"""The client of `benchmarks.ingest`, in a process of its own: what it costs is not the daemon's.

It shares the processors with the daemon, so it does as little as it can: requests are made
beforehand, sockets are raw, and of an answer it reads the status, the length and `Retry-After`.

    closed loop    each connection posts again as soon as it is answered: the most that is done
    open loop      posts are sent at planned times, whether or not earlier ones were answered, and
                   latency counts from the planned time: a stall is seen by all it delays

It takes a `Plan` as JSON on standard input and writes a `Finding` to standard output.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import cast

import msgspec
import numpy as np
import uvloop

from benchmarks.ingest_requests import make_predictions, make_requests

_QUANTILES = 1000
_DRAIN_SECONDS = 10.0
_CONNECT_AT_ONCE = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    Args:
        host: Of the daemon, an address.
        port: Its port.
        form: One of `ingest_requests.FORMS`.
        batch: Samples a request.
        features: Values a sample, 0 to 255.
        connections: In a closed loop how many; in an open one the most that are opened.
        seconds: How long posts are sent, after `warm_up_seconds`.
        warm_up_seconds: Not measured.
        requests: A closed loop ends after so many, where that is earlier; 0: without limit.
        rate: Planned posts a second of an open loop, at random times; None: a closed loop.
        seed: Of the samples and the times.
        predict: Ask for predictions instead of posting samples.
    """

    host: str
    port: int
    form: str
    batch: int
    features: int
    connections: int
    seconds: float
    warm_up_seconds: float = 0.5
    requests: int = 0
    rate: float | None = None
    seed: int = 0
    predict: bool = False


class Finding(msgspec.Struct, kw_only=True):
    """What happened after the warm-up.

    Args:
        planned: Posts that were to be sent.
        statuses: Answers by HTTP status; 0: the connection was lost.
        refusals_without_retry_after: 429 and 503 that did not say when to come back.
        unanswered: Sent, or still to be sent, when the run ended.
        seconds: From the first to the last answer.
        latency_quantiles: Of the accepted posts, seconds, from the least to the largest at even
            steps; empty without any.
        p50: Of the same, seconds.
        p99: Likewise.
        p999: Likewise.
        lag_p99: How late the client itself was in sending, seconds; 0 in a closed loop.
        opened: Connections that were open at the end.
        timeline: At each quarter of a second, how many posts had been accepted.
    """

    planned: int
    statuses: dict[int, int]
    refusals_without_retry_after: int
    unanswered: int
    seconds: float
    latency_quantiles: list[float]
    p50: float | None
    p99: float | None
    p999: float | None
    lag_p99: float
    opened: int
    timeline: list[tuple[float, int]]


class _Connection(asyncio.Protocol):
    """One keep-alive connection; at most one request at a time."""

    def __init__(
        self, done: Callable[[_Connection, int, bool], None], lost: Callable[[], None]
    ) -> None:
        self._done = done
        self._lost = lost
        self._buffer = b""
        self.planned = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, planned: float) -> None:
        self.planned = planned
        self.busy = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        start = head.find(b"content-length: ") + 16
        if len(data) < end + 4 + int(head[start : head.find(b"\r", start) % (end + 1)]):
            return
        self._buffer = b""
        if not self.busy:  # refused before it asked
            self.transport.close()
            return
        self.busy = False
        self._done(self, int(data[9:12]), b"\r\nretry-after: " in head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._done(self, 0, False)
        self._lost()


class _Run:
    """One plan being carried out."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        make = make_predictions if plan.predict else make_requests
        self._requests = make(
            plan.form, plan.batch, plan.features, f"{plan.host}:{plan.port}", plan.seed
        )
        self._accepted = 200 if plan.predict else 201
        self._sent = 0
        self._idle: list[_Connection] = []
        self._opening = 0
        self._opened = 0
        self._waiting: deque[float] = deque()
        self._in_flight = 0
        self._measured = 0
        self._statuses: Counter[int] = Counter()
        self._bare_refusals = 0
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._ended = False
        self._first = self._last = 0.0
        self._timeline: list[tuple[float, int]] = []

    async def carry_out(self) -> Finding:
        self._loop = asyncio.get_running_loop()
        first = 1 if self._plan.rate else self._plan.connections
        for start in range(0, first, _CONNECT_AT_ONCE):
            size = min(_CONNECT_AT_ONCE, first - start)
            self._idle += await asyncio.gather(*(self._connect() for _ in range(size)))
        # What lives now lives to the end; nothing after it makes cycles.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._begin = self._first = time.perf_counter() + self._plan.warm_up_seconds
        self._end = self._begin + self._plan.seconds
        watch = asyncio.create_task(self._watch())
        await (self._open_loop() if self._plan.rate else self._closed_loop())
        self._ended = True
        deadline = time.perf_counter() + _DRAIN_SECONDS
        while (self._in_flight or self._waiting) and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        watch.cancel()
        return self._finding()

    async def _connect(self) -> _Connection:
        self._opened += 1
        _, made = await self._loop.create_connection(
            lambda: _Connection(self._done, self._lost), self._plan.host, self._plan.port
        )
        return made

    async def _watch(self) -> None:
        while True:
            elapsed = time.perf_counter() - self._begin
            if elapsed >= 0:
                self._timeline.append((round(elapsed, 3), self._statuses[self._accepted]))
            await asyncio.sleep(0.25)

    async def _closed_loop(self) -> None:
        connections, self._idle = self._idle, []
        for connection in connections:
            self._post(connection, time.perf_counter())
        while time.perf_counter() < self._end and not self._enough():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _open_loop(self) -> None:
        rate = self._plan.rate or 1.0
        total = self._plan.warm_up_seconds + self._plan.seconds
        gaps = np.random.default_rng(self._plan.seed).exponential(1 / rate, int(total * rate))
        times = (self._begin - self._plan.warm_up_seconds + np.cumsum(gaps)).tolist()
        place = 0
        while place < len(times):
            now = time.perf_counter()
            while place < len(times) and times[place] <= now:
                self._waiting.append(times[place])
                place += 1
            self._serve_waiting()
            if place < len(times):
                await asyncio.sleep(max(0.0, times[place] - time.perf_counter()))

    def _serve_waiting(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                planned = self._waiting.popleft()
                self._lags.append(time.perf_counter() - planned)
                self._post(connection, planned)
        wanted = len(self._waiting) - self._opening
        room = self._plan.connections - self._opened
        for _ in range(min(wanted, room, _CONNECT_AT_ONCE - self._opening)):
            self._opening += 1
            task = asyncio.ensure_future(self._connect())
            task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Future[_Connection]) -> None:
        self._opening -= 1
        if task.exception() is None:
            self._idle.append(task.result())
            self._serve_waiting()
        else:
            self._lost()

    def _post(self, connection: _Connection, planned: float) -> None:
        self._in_flight += 1
        self._sent += 1
        connection.send(self._requests[self._sent % len(self._requests)], planned)

    def _enough(self) -> bool:
        return 0 < self._plan.requests <= self._sent

    def _done(self, connection: _Connection, status: int, retry_after: bool) -> None:
        now = time.perf_counter()
        self._in_flight -= 1
        if connection.planned >= self._begin:
            self._measured += 1
            self._statuses[status] += 1
            self._last = now
            if status == self._accepted:
                self._latencies.append(now - connection.planned)
            elif status in (429, 503) and not retry_after:
                self._bare_refusals += 1
        if status == 0:
            return
        if self._plan.rate:
            self._idle.append(connection)
            if self._waiting:
                self._serve_waiting()
        elif not self._ended and now < self._end and not self._enough():
            self._post(connection, now)

    def _lost(self) -> None:
        self._opened -= 1

    def _finding(self) -> Finding:
        latencies = np.array(self._latencies)
        known = len(latencies) > 0

        def quantile(values: np.typing.NDArray[np.float64], share: float) -> float:
            return float(np.quantile(values, share))

        return Finding(
            planned=self._measured + self._in_flight + len(self._waiting),
            statuses=dict(self._statuses),
            refusals_without_retry_after=self._bare_refusals,
            unanswered=self._in_flight + len(self._waiting),
            seconds=self._last - self._first,
            latency_quantiles=np.quantile(latencies, np.linspace(0, 1, _QUANTILES + 1)).tolist()
            if known
            else [],
            p50=quantile(latencies, 0.5) if known else None,
            p99=quantile(latencies, 0.99) if known else None,
            p999=quantile(latencies, 0.999) if known else None,
            lag_p99=quantile(np.array(self._lags), 0.99) if self._lags else 0.0,
            opened=self._opened,
            timeline=self._timeline,
        )


def main() -> None:
    """Entry point."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_Run(plan).carry_out())))


if __name__ == "__main__":
    main()
