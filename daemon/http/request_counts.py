"""Every request counted under its route."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.telemetry import Telemetry


class CountRequests:
    """ASGI middleware that counts each request under its route's template, never its raw path."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._requests = telemetry.http_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._requests.labels(route, scope["method"], str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
