"""A real server on loopback, in a thread, with a small application; and raw sockets to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.http import Connections, Limits, server_config

BIG_BYTES = 32 << 20
LIMIT_BYTES = 1 << 20
WAIT_SECONDS = 20


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class Served:
    """A server, and what it refused."""

    def __init__(self, limits: Limits) -> None:
        self.refused: Counter[str] = Counter()
        self.full = False
        self.hold = threading.Event()
        self.disconnects = 0
        self.connections = Connections(
            limits, lambda reason: self.refused.update([reason]), lambda: self.full
        )
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = self._listener.getsockname()
        routes = [
            Route("/samples", self._samples, methods=["POST"]),
            Route("/big", self._big),
            Route("/held", self._held, methods=["GET", "POST"]),
        ]
        app = Starlette(routes=routes)
        self._server = uvicorn.Server(server_config(app, self.connections, 1))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}
        )
        self._thread.start()

    def stop(self) -> None:
        self.hold.set()
        self._server.should_exit = True
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()

    async def _samples(self, request: Request) -> Response:
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > LIMIT_BYTES:
                    return Response(b'{"error":"too large","code":"too_large"}', 413)
        except ClientDisconnect:
            self.disconnects += 1
            return Response()
        return Response(str(size))

    async def _big(self, _: Request) -> Response:
        return Response(bytes(BIG_BYTES))

    async def _held(self, _: Request) -> Response:
        await asyncio.to_thread(self.hold.wait, WAIT_SECONDS)
        return Response("held")


@contextlib.contextmanager
def served(**limits: float) -> Iterator[Served]:
    server = Served(Limits(**limits))  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


class Client:
    """One raw connection."""

    def __init__(self, server: Served, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(
            server.address, timeout=WAIT_SECONDS, source_address=(source, 0)
        )
        self._rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def post(self, size: int = 3, more: str = "") -> Client:
        head = f"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{more}\r\n"
        return self.send(head.encode() + bytes(size))

    def answer(self) -> Answer:
        data = self._rest
        while b"\r\n\r\n" not in data:
            data += self._receive(data)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        parts, missing = [body[:length]], length - len(body)
        self._rest = body[length:]
        while missing > 0:
            parts.append(self._receive(head))
            missing -= len(parts[-1])
        return Answer(int(first.split()[1]), headers, b"".join(parts))

    def closed(self) -> bool:
        """Nothing more comes: the server has closed, cleanly or not."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self, so_far: bytes) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, f"closed after {so_far[:100]!r}"
        return data
