"""The HTTP surface, put together. Everything it works with is given to `create_app`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from daemon import __version__
from daemon.errors import RequestError
from daemon.http.answers import (
    answer_bad_parameter,
    answer_bug,
    answer_http_error,
    answer_nobody,
    answer_request_error,
    answer_unreadable,
)
from daemon.http.direct_routes import add_direct_routes
from daemon.http.label_routes import add_label_routes
from daemon.http.model_routes import add_model_routes
from daemon.http.predict_routes import add_predict_routes
from daemon.http.request_counts import CountRequests
from daemon.http.sample_list_routes import add_sample_list_routes
from daemon.http.sample_routes import add_sample_routes
from daemon.http.service import Service
from daemon.http.train_routes import add_train_routes
from daemon.http.watch_routes import add_watch_routes


def create_app(service: Service, *, on_start: Callable[[], None] = lambda: None) -> FastAPI:
    """The application.

    Args:
        service: Its collaborators, all running but supervisor, swaps, power monitor, governor and
            scrub; the app starts these, and stops them and the store when it ends.
        on_start: Called when requests are about to be answered.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.swaps.start()
        service.supervisor.start()
        service.power.start()
        service.governor.start()
        service.scrub.start()
        on_start()
        yield
        await asyncio.to_thread(service.scrub.stop)
        await asyncio.to_thread(service.governor.stop)
        await asyncio.to_thread(service.supervisor.stop)
        await asyncio.to_thread(service.swaps.stop)
        await asyncio.to_thread(service.power.stop)
        service.delayed.save(last=True)
        await asyncio.to_thread(service.store.close)
        service.predicting.shutdown()

    app = FastAPI(
        title="ffedge",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        # The framework's own would look for an exporter in every request; ours is `/metrics`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_middleware(CountRequests, telemetry=service.telemetry)
    app.exception_handler(RequestError)(answer_request_error)
    app.exception_handler(RequestValidationError)(answer_bad_parameter)
    app.exception_handler(HTTPException)(answer_http_error)
    app.exception_handler(ClientDisconnect)(answer_nobody)
    app.exception_handler(sqlite3.Error)(answer_unreadable)
    app.exception_handler(Exception)(answer_bug)
    add_sample_routes(app, service)
    add_sample_list_routes(app, service)
    add_label_routes(app, service)
    add_predict_routes(app, service)
    add_model_routes(app, service)
    add_train_routes(app, service)
    add_watch_routes(app, service)
    add_direct_routes(app, service.telemetry)
    return app
