"""HTTP/1.1 on one connection, with the limits that uvicorn lacks.

uvicorn waits for ever on a request that is still arriving, and takes headers of any size. This
protocol bounds both, in time and in bytes; bounds connections, slow readers, bodies in memory, and
posts of samples that would only wait; and says so in our error shape before it closes.

    bytes ─► head ─► body ─► answered by the app ─► idle ─► head ...
             408     408     cut off if not read    closed
             431
             503: refused here, before it costs a task

Whoever still sends when its request is refused would see a reset instead of the answer, if the
connection were closed at once. So it is half-closed, and what still comes is thrown away, for a
while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from daemon.errors import (
    BadHttpError,
    BusyError,
    DrainingError,
    HeadersTooLargeError,
    RequestError,
    TooLargeError,
    TooManyConnectionsError,
    TooSlowError,
)
from daemon.http.connections import NEVER, Connections
from daemon.http.refusals import CROWDED, OVERLOADED, busy_answer, raw_answer, refusing

_INGEST = "/samples"
# A body of so many bytes is let in however much memory others take.
_SMALL_BYTES = 64 << 10
# More than the limit are answered before they are closed, so that descriptors never run out.
_SPARE_CONNECTIONS = 64


@dataclass
class _Taken:
    """What one request that is not yet answered takes of what all share."""

    body_bytes: int = 0
    ingesting: bool = False


class LimitedProtocol(HttpToolsProtocol):
    """See the module.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: The running loop, unless given.
        connections: All of the server's.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = connections
        self._limits = connections.limits
        self._address = ""
        self.deadline = NEVER
        self._in_head = False
        self._in_message = False
        self._begun = 0  # requests
        self._message_bytes = 0
        self._unread = 0
        self._is_ingest = False
        self._taken: deque[_Taken] = deque()  # as their answers follow one another
        self._close_asked = False
        self._answered_early = False  # the rest of this request is thrown away
        self._lingering = False  # everything that still comes is

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        shared = self._shared
        shared.add(self, self._address, self.loop)
        self._wait(self._limits.header_seconds)
        if len(shared) > self._limits.connections + _SPARE_CONNECTIONS:
            shared.refused("connections")
            transport.abort()
        elif len(shared) > self._limits.connections:
            found = f"{self._limits.connections} connections are open, no more may be"
            self._refuse(TooManyConnectionsError(found), "connections")
        elif shared.of(self._address) > self._limits.address_connections:
            found = f"{self._limits.address_connections} connections of this address are open"
            self._refuse(TooManyConnectionsError(f"{found}, no more may be"), "address_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._shared.remove(self, self._address)
        while self._taken:
            self._give_back()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._lingering:
            self._message_bytes += len(data)
            if self._message_bytes > self._limits.message_bytes:
                self.transport.abort()
            return
        begun = self._begun
        super().data_received(data)
        # A request that began in these bytes is bounded by what one read brings.
        if begun == self._begun and self._in_message and not self._lingering:
            self._message_bytes += len(data)
            if self._in_head and self._message_bytes > self._limits.header_bytes:
                self._refuse_headers()
            elif self._message_bytes > self._limits.message_bytes:
                self._refuse(TooLargeError("the request does not end: send several"), "body")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._begun += 1
        self._answered_early = self._close_asked = False
        self._message_bytes = 0
        if not self._lingering:
            self._wait(self._limits.header_seconds)

    def on_headers_complete(self) -> None:
        """All headers of a request."""
        if self._lingering:
            return
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if len(self.headers) > self._limits.headers or size > self._limits.header_bytes:
            self._refuse_headers()
            return
        self._in_head = False
        self._wait(self._limits.body_seconds)
        self._is_ingest = self.parser.get_method() == b"POST" and _path(self.url).startswith(
            _INGEST
        )
        busy = self._busy()
        if busy is not None and not self._is_answering():
            self._shared.refused("busy")
            self._answered_early = True
            keep = self.parser.should_keep_alive()
            self.transport.write(busy_answer(busy, close=not keep))
            if not keep:
                self._linger()
            return
        super().on_headers_complete()
        self._taken.append(_Taken())
        if busy is not None:
            # Its answer has its turn behind those of the requests before it.
            self._shared.refused("busy")
            self.pipeline[0] = (self.cycle, refusing(BusyError(busy), close=False))
            self._is_ingest = False
        # Closed by the app's answer, a body that still arrives would reset the connection.
        self._close_asked = not self.cycle.keep_alive
        self.cycle.keep_alive = True

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        if self._answered_early or self._lingering:
            return
        taken = self._taken[-1]
        taken.body_bytes += len(body)
        self._shared.body_bytes += len(body)
        if self._shared.crowded and taken.body_bytes > _SMALL_BYTES:
            self._shared.body_bytes -= taken.body_bytes
            taken.body_bytes = 0
            self._refuse(BusyError(CROWDED), "busy")
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._lingering:
            return
        self._in_message = False
        if self._answered_early:
            self._answered_early = False
            if self._close_asked:
                self._linger()
            else:
                self._wait(self._limits.idle_seconds)
            return
        self.deadline = NEVER
        self.cycle.keep_alive = self.cycle.keep_alive and not self._close_asked
        if self._is_ingest:
            self._taken[-1].ingesting = True
            self._shared.ingesting += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The app has answered a request."""
        if self._taken:  # none is left of a connection that was lost
            self._give_back()
        if self._in_message and not self._in_head and not self.pipeline:
            self._answered_early = True
        elif not self.flow.write_paused:
            self._wait(self._limits.idle_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as the app writes."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._wait(self._limits.body_seconds)

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        if self._is_answering():
            self.deadline = NEVER
        else:
            self._wait(self._limits.idle_seconds)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does with a request that it cannot parse; the words are our own."""
        del msg
        if not self._lingering:
            self._refuse(BadHttpError("this is no HTTP/1.1 request: send one"), "http")

    def expire(self) -> None:
        """The deadline has passed, of whatever the client was to do."""
        if self.flow.write_paused and self.transport.get_write_buffer_size() <= self._unread // 2:
            self.pause_writing()
        elif self.flow.write_paused:
            self._shared.refused("slow_reader")
            self.transport.abort()
        elif self._lingering or self.transport.is_closing():
            self.transport.abort()
        elif self.flow.read_paused:  # it is we who keep it waiting
            self._wait(self._limits.body_seconds)
        elif self._in_message and self._shared.draining:
            self._refuse(DrainingError("the daemon is stopping: send it again later"), "draining")
        elif self._in_message:
            part = "head" if self._in_head else "body"
            seconds = self._limits.header_seconds if self._in_head else self._limits.body_seconds
            late = f"the {part} of the request took over {seconds:g} s: send it faster"
            self._refuse(TooSlowError(late), f"{part}_timeout")
        elif self._is_answering():
            self.deadline = NEVER
        else:
            self._wait(self._limits.linger_seconds)
            self.transport.close()

    def _wait(self, seconds: float) -> None:
        self.deadline = self.loop.time() + seconds

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_back(self) -> None:
        taken = self._taken.popleft()
        self._shared.body_bytes -= taken.body_bytes
        self._shared.ingesting -= taken.ingesting

    def _busy(self) -> str | None:
        """Why a request is refused at its headers, if it is."""
        if self._is_ingest and self._shared.overloaded:
            return OVERLOADED
        if self._shared.crowded and _claimed_bytes(self.headers) > _SMALL_BYTES:
            return CROWDED
        return None

    def _refuse_headers(self) -> None:
        limits = self._limits
        wanted = f"at most {limits.headers} headers, {limits.header_bytes} bytes in all"
        self._refuse(HeadersTooLargeError(f"the headers are too large: {wanted}"), "headers")

    def _refuse(self, error: RequestError, reason: str) -> None:
        """Answer with an error and read no more requests."""
        self._shared.refused(reason)
        if self._is_answering() and (self._in_head or not self._in_message):
            # An earlier request's answer is still to come: it is the last one.
            self._lingering = True
            self._wait(self._limits.body_seconds)
            self.cycle.keep_alive = False
            return
        if self.pipeline:
            # Likewise, but this request has its turn in the queue, and is answered when that comes.
            self.pipeline[0] = (self.cycle, refusing(error, close=True))
            self._lingering = True
            self._wait(self._limits.body_seconds)
            return
        if self._is_answering():
            self._answered_early = self.cycle.response_started
            # The app learns that there is nothing more to wait for, and nobody to answer.
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if not self._answered_early:
            self.transport.write(raw_answer(error, close=True))
        self._linger()

    def _linger(self) -> None:
        self._lingering = True
        self._message_bytes = 0
        self._wait(self._limits.linger_seconds)
        self.flow.resume_reading()
        self.transport.write_eof()


def _path(url: bytes) -> str:
    """As the app sees it, of a request's target: that may be encoded, or a whole URL."""
    path: str = httptools.parse_url(url).path.decode("ascii")
    return unquote(path) if "%" in path else path


def _claimed_bytes(headers: list[tuple[bytes, bytes]]) -> float:
    """Of a body; what comes in chunks may have no end. The parser has checked that it is one."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return NEVER
    return 0
