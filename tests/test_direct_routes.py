"""The busy routes are called directly, and nobody can tell."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from daemon.errors import BadFieldError
from daemon.http.direct_routes import add_direct_routes
from daemon.telemetry import Telemetry


@pytest.fixture
def telemetry():
    return Telemetry(CollectorRegistry())


@pytest.fixture
def client(telemetry):
    app = FastAPI()

    @app.post("/direct")
    async def direct(request: Request) -> Response:
        match await request.body():
            case b"ours":
                raise BadFieldError("no", field="x")
            case b"bug":
                raise ZeroDivisionError
            case body:
                return Response(body + str("router" in request.scope).encode())

    @app.post("/with/{parameter}")
    async def with_parameter(request: Request, parameter: str) -> Response:
        return Response(str("router" in request.scope))

    add_direct_routes(app, telemetry)
    return TestClient(app, raise_server_exceptions=False)


def test_only_what_takes_just_the_request_goes_past_the_framework(client):
    assert client.post("/direct", content=b"body ").text == "body False"
    assert client.post("/with/x").text == "True"
    assert client.get("/direct").status_code == 405
    assert client.post("/none").status_code == 404


def test_errors_are_answered_and_requests_counted_as_elsewhere(client, telemetry):
    ours = client.post("/direct", content=b"ours")
    assert (ours.status_code, ours.json()["field"]) == (422, "x")
    bug = client.post("/direct", content=b"bug")
    assert (bug.status_code, bug.json()["code"]) == (500, "internal")
    for code in ("422", "500"):
        labels = {"route": "/direct", "method": "POST", "code": code}
        name = "ffedge_http_requests_total"
        assert telemetry.registry.get_sample_value(name, labels) == 1


def test_a_client_that_has_gone_is_no_error(telemetry, caplog):
    app = FastAPI()

    @app.post("/direct")
    async def direct(request: Request) -> Response:
        await request.body()
        raise AssertionError("the body never came")

    add_direct_routes(app, telemetry)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "path": "/direct", "method": "POST", "headers": []}
    asyncio.run(app(scope, gone, send))
    assert not caplog.records
