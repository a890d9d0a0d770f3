"""The busy routes, called without what FastAPI would do around them.

An endpoint that takes nothing but the request needs no dependencies solved and no answer
validated. Such a one is called straight from the server, which saves a third of what a small post
costs; it is declared, documented and counted like every other.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.errors import RequestError
from daemon.http.answers import answer_bug, answer_request_error
from daemon.telemetry import Telemetry

_Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """ASGI middleware that answers what it can itself and passes the rest on.

    Args:
        app: Gets the rest.
        endpoints: By path and method.
        telemetry: Counts the requests that are answered here.
    """

    def __init__(
        self, app: ASGIApp, endpoints: dict[tuple[str, str], _Endpoint], telemetry: Telemetry
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._requests = telemetry.http_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path, method = scope.get("path", ""), scope.get("method", "")
        endpoint = self._endpoints.get((path, method))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await endpoint(request)
        except RequestError as error:
            answer = await answer_request_error(request, error)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - logged, and the client gets an answer
            answer = await answer_bug(request, error)
        self._requests.labels(path, method, str(answer.status_code)).inc()
        await answer(scope, receive, send)


def add_direct_routes(app: FastAPI, telemetry: Telemetry) -> None:
    """Call directly every endpoint of `app` that takes just the request; no route may follow."""
    endpoints: dict[tuple[str, str], _Endpoint] = {}
    for route in app.routes:
        if isinstance(route, APIRoute) and [*inspect.signature(route.endpoint).parameters] == [
            "request"
        ]:
            for method in route.methods or ():
                endpoints[route.path, method] = route.endpoint
    app.middleware_stack = DirectRoutes(app.build_middleware_stack(), endpoints, telemetry)
