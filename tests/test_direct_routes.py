"""The busy routes are called directly, and nobody can tell."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from daemon.errors import BadFieldError, StorageError
from daemon.http.completions import Completions
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


def test_futures_of_another_thread_are_awaited_each_with_its_own_end():
    completions = Completions()
    futures: list[Future[int]] = [Future() for _ in range(1000)]

    def resolve() -> None:
        for number, future in enumerate(futures):
            if number % 10:
                future.set_result(number)
            else:
                future.set_exception(StorageError("no"))

    async def wait() -> list[int | BaseException]:
        waiting = [asyncio.ensure_future(completions.of(future)) for future in futures]
        given_up = asyncio.ensure_future(completions.of(futures[5]))
        await asyncio.sleep(0)
        given_up.cancel()
        with ThreadPoolExecutor(1) as writer:
            writer.submit(resolve)
            found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        futures.append(Future())
        futures[-1].set_result(7)  # before it is awaited
        assert await completions.of(futures[-1]) == 7
        return found

    for number, found in enumerate(asyncio.run(wait())):
        assert found == number if number % 10 else isinstance(found, StorageError)
