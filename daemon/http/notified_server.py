"""The HTTP server as a service manager wants it: it says when it is ready, well, and stopping.

`READY=1` goes out once requests are accepted: the first version serves by then. The watchdog is fed
from the event loop itself, never from a thread, and only while every part gets on that nothing else
restarts: a loop that is blocked, a writer, a predictor or a supervisor that is stuck, or an engine
that fails request after request lets the manager restart the daemon. The learner is the
supervisor's: one that hangs is killed, and costs no request.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from daemon.http.connections import Connections
from daemon.http.protocol import LimitedProtocol
from daemon.notify import Notifier

# Without a watchdog there is still a status line to keep.
_STATUS_SECONDS = 10.0
# In the time that the manager waits: a part that is stuck is seen in half of it.
_LOOKS = 4


@dataclass(frozen=True)
class Health:
    """What the daemon says of itself.

    Args:
        well: Whether every part of the server has got on within so many seconds; asked twice in
            that time, at least.
        status: One line.
    """

    well: Callable[[float], bool]
    status: Callable[[], str]


def server_config(app: ASGIApp, connections: Connections, grace_seconds: int) -> uvicorn.Config:
    """How uvicorn serves `app`.

    Args:
        app: The application.
        connections: Counts and bounds them.
        grace_seconds: How long requests may go on once the server is to stop.
    """
    return uvicorn.Config(
        cast(Any, app),
        http=cast(Any, functools.partial(LimitedProtocol, connections=connections)),
        loop="uvloop",
        ws="none",
        proxy_headers=False,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=cast(Any, connections.limits.idle_seconds),
        timeout_graceful_shutdown=grace_seconds,
    )


class NotifiedServer(uvicorn.Server):
    """See `uvicorn.Server`.

    Args:
        config: uvicorn's.
        notifier: Told.
        health: Asked before the watchdog is fed.
        connections: Those of `config`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        notifier: Notifier,
        health: Health,
        connections: Connections,
    ) -> None:
        super().__init__(config)
        self._notifier = notifier
        self._connections = connections
        self._health = health
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        await super().startup(sockets)
        if self.started:
            self._notifier.ready()
            self._watch = asyncio.create_task(self._watching())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        self._notifier.stopping()
        self._connections.drain(asyncio.get_running_loop().time())
        await super().shutdown(sockets)

    async def _watching(self) -> None:
        limit = self._notifier.watchdog_seconds
        while not self.should_exit:
            self._notifier.status(self._health.status())
            if limit is not None and self._health.well(limit / 2):
                self._notifier.alive()
            await asyncio.sleep(_STATUS_SECONDS if limit is None else limit / _LOOKS)
