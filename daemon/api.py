"""The HTTP surface: decode, hand over, answer. Everything it works with is given to `create_app`.

Request bodies are read raw and decoded by `daemon.samples`: a stock FastAPI body answers 500 to
some malformed JSON and repeats input in its errors.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon import __version__
from daemon.errors import (
    AllRefusedError,
    BadFieldError,
    ContentTypeError,
    EngineError,
    RequestError,
    TooLargeError,
    UnknownIdError,
)
from daemon.jobs import JobBook
from daemon.power import PowerMonitor
from daemon.promotion import LEDGER
from daemon.samples import (
    BODY_LIMIT_BYTES,
    STREAM_LIMIT_BYTES,
    Sample,
    TrainBody,
    decode_json,
    decode_predict_request,
    decode_sample_request,
)
from daemon.serving import ServingSlot
from daemon.store import SampleStore, Stored
from daemon.supervisor import Supervisor
from daemon.telemetry import Telemetry
from daemon.versions import VersionStore
from engines import EngineFailedError
from models import ModelSpec

log = logging.getLogger(__name__)

JSON_TYPE = "application/json"
STREAM_TYPE = "application/x-ndjson"
_DECISIONS_SHOWN = 50
_LARGE_BYTES = 16 << 10


@dataclass(frozen=True)
class Service:
    """What the routes work with.

    Args:
        spec: The network.
        store: Keeps samples.
        slot: Answers predictions.
        versions: Lists versions.
        jobs: Lists training jobs.
        supervisor: Runs the learner.
        telemetry: Counts.
        power: Knows what the board takes.
    """

    spec: ModelSpec
    store: SampleStore
    slot: ServingSlot
    versions: VersionStore
    jobs: JobBook
    supervisor: Supervisor
    telemetry: Telemetry
    power: PowerMonitor


def create_app(service: Service, *, on_start: Callable[[], None] = lambda: None) -> FastAPI:
    """The application.

    Args:
        service: Its collaborators, all running but the supervisor and the power monitor; the app
            starts these, and stops them and the store when it ends.
        on_start: Called when requests are about to be answered.
    """
    # Predictions compute off the event loop, so that a slow one does not hold up ingest.
    predicting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.supervisor.start()
        service.power.start()
        on_start()
        yield
        await asyncio.to_thread(service.supervisor.stop)
        await asyncio.to_thread(service.power.stop)
        await asyncio.to_thread(service.store.close)
        predicting.shutdown()

    app = FastAPI(title="ffedge", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(_CountRequests, telemetry=service.telemetry)
    app.exception_handler(RequestError)(_answer_request_error)
    app.exception_handler(RequestValidationError)(_answer_bad_parameter)
    app.exception_handler(HTTPException)(_answer_http_error)
    app.exception_handler(Exception)(_answer_bug)

    @app.post("/samples", status_code=201, openapi_extra=_body("{x, label} or {samples: [...]}"))
    async def post_samples(request: Request) -> Response:
        """Keep labelled samples; 201 is sent once they are durable."""
        kind = _content_type(request, JSON_TYPE, STREAM_TYPE)
        stream = kind == STREAM_TYPE
        limit = STREAM_LIMIT_BYTES if stream else BODY_LIMIT_BYTES
        body = await _read(request, limit)
        # Off the event loop: ten thousand lines take a fifth of a second.
        decode = functools.partial(decode_sample_request, body, service.spec, stream=stream)
        decoded = await asyncio.to_thread(decode) if len(body) > _LARGE_BYTES else decode()
        results: list[Stored | RequestError] = []
        samples = [entry for entry in decoded.entries if isinstance(entry, Sample)]
        if samples:
            results = await asyncio.wrap_future(service.store.add(samples))
        stored = iter(results)
        outcome = [
            next(stored) if isinstance(entry, Sample) else entry for entry in decoded.entries
        ]
        sources = [e.source if isinstance(e, Sample) else "" for e in decoded.entries]
        return _answer_samples(outcome, sources, service, single=decoded.single)

    @app.post("/predict", openapi_extra=_body("{x} or {samples: [{x}, ...]}"))
    async def post_predict(request: Request) -> Response:
        """Answer from the version that serves now; one answer never mixes two versions."""
        started = time.monotonic()
        code = 500
        try:
            _content_type(request, JSON_TYPE)
            body = await _read(request, BODY_LIMIT_BYTES)
            x, single = decode_predict_request(body, service.spec)
            served = service.slot.current
            loop = asyncio.get_running_loop()
            try:
                answers = await loop.run_in_executor(predicting, served.answer, x)
            except EngineFailedError as error:
                service.slot.failures += 1
                log.error("engine did not answer", extra={"why": str(error)})
                raise EngineError("the engine did not answer: try again") from error
            service.slot.failures = 0
            content: dict[str, Any] = {
                "model": service.spec.name,
                "model_version": str(served.weights.version),
            }
            content |= answers[0] if single else {"predictions": answers}
            code = 200
            return _json(content)
        except RequestError as error:
            code = error.status
            raise
        finally:
            service.telemetry.inference_requests.labels(str(code)).inc()
            service.telemetry.inference_seconds.observe(time.monotonic() - started)

    @app.get("/models")
    async def get_models() -> Response:
        """The version that serves, those kept, and the newest decisions about candidates."""
        decisions = await asyncio.to_thread(service.store.records, LEDGER, _DECISIONS_SHOWN)
        return _json(_describe_models(service, decisions))

    @app.post("/train", status_code=202, openapi_extra=_body("{max_steps?, reason?}"))
    async def post_train(request: Request) -> Response:
        """Have the learner train now; while a job runs, that job is the answer."""
        body = await _read(request, BODY_LIMIT_BYTES)
        if body:
            _content_type(request, JSON_TYPE)
        asked = decode_json(body or b"{}", TrainBody)
        job, new = service.supervisor.request_training(asked.reason, asked.max_steps)
        headers = {"Location": f"/train/{job['job']}"}
        return _json(job, status=202 if new else 200, headers=headers)

    @app.get("/train")
    async def get_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
        """Training jobs, newest first."""
        return _json({"jobs": service.jobs.list()[:limit]})

    @app.get("/train/{job}")
    async def get_job(job: str) -> Response:
        """One training job."""
        found = service.jobs.find(job)
        if found is None:
            raise UnknownIdError("no such job; GET /train lists them")
        return _json(found)

    @app.get("/metrics")
    async def get_metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(service.telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health/live")
    async def get_live() -> Response:
        """The process answers."""
        return _json({"live": True})

    @app.get("/health/ready")
    async def get_ready() -> Response:
        """Samples are kept and predictions answered; the learner may be down meanwhile."""
        full = service.store.queue_depth >= service.store.queue_limit
        status = {
            "ready": not full,
            "live": True,
            "learner": service.supervisor.up,
            "power": service.power.sources(),
        }
        return _json(status, status=503 if full else 200)

    return app


def _answer_samples(
    outcome: list[Stored | RequestError], sources: list[str], service: Service, *, single: bool
) -> Response:
    rejected: list[dict[str, Any]] = []
    for index, (entry, source) in enumerate(zip(outcome, sources, strict=True)):
        if isinstance(entry, RequestError):
            rejected.append({"index": index} | entry.body())
            service.telemetry.received(source, "rejected")
        else:
            service.telemetry.received(source, "duplicate" if entry.duplicate else "accepted")
    stored = [entry for entry in outcome if isinstance(entry, Stored)]
    if not stored:
        if single and isinstance(outcome[0], RequestError):
            raise outcome[0]
        raise AllRefusedError(rejected)
    new = [entry.seq for entry in stored if not entry.duplicate]
    return _json(
        {
            "accepted": len(new),
            "duplicates": len(stored) - len(new),
            "rejected": rejected,
            "ids": [entry.id if isinstance(entry, Stored) else None for entry in outcome],
            "first_seq": min(new, default=None),
            "last_seq": max(new, default=None),
            "queue_depth": service.store.queue_depth,
        },
        status=201,
    )


def _describe_models(service: Service, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = service.versions.manifest
    gates = {decision.pop("version"): decision for decision in decisions}
    roles = {manifest.active: "active", manifest.previous: "previous"}
    versions = [
        {
            "version": str(entry.version),
            "role": roles.get(entry.version),
            "state": "good",
            "parent": None if entry.parent is None else str(entry.parent),
            "created": entry.created,
            "sha256": entry.sha256,
            "last_seq": entry.last_seq,
            "gate": gates.get(str(entry.version)),
        }
        for entry in sorted(manifest.versions, key=lambda e: -e.version)
    ]
    return {
        "model": service.spec.name,
        "active": str(manifest.active),
        "previous": None if manifest.previous is None else str(manifest.previous),
        "classes": list(service.slot.current.weights.classes),
        "versions": versions,
        "refused": [
            {"version": version, "gate": gate}
            for version, gate in gates.items()
            if gate["decision"] == "refused"
        ],
    }


async def _read(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it exceeds its limit, whatever length was claimed."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the body exceeds {limit} bytes: send several requests")
        parts.append(part)
    return b"".join(parts)


def _content_type(request: Request, *wanted: str) -> str:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ContentTypeError("compressed bodies are not read: send it without Content-Encoding")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in wanted:
        raise ContentTypeError(f"Content-Type must be {' or '.join(wanted)}")
    return kind


def _json(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, JSON_TYPE)


def _body(description: str) -> dict[str, Any]:
    schema = {"type": "object", "description": description}
    return {"requestBody": {"content": {JSON_TYPE: {"schema": schema}}, "required": True}}


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this type
    retry = error.retry_after_seconds
    headers = None if retry is None else {"Retry-After": str(retry)}
    return _json(error.body(), status=error.status, headers=headers)


async def _answer_bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    wrong = BadFieldError(f"parameter '{name}': {first['msg']}", field=name)
    return await _answer_request_error(request, wrong)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    known = {
        404: ("no such route; /docs lists them", "unknown_route"),
        405: ("this route has another method; /docs lists them", "method"),
    }
    text, code = known.get(error.status_code, (error.detail, "http"))
    headers = dict(error.headers) if error.headers else None
    body = {"error": text, "code": code}
    return _json(body, status=error.status_code, headers=headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    log.error("unhandled error", extra={"path": request.url.path}, exc_info=error)
    return _json({"error": "internal error; the log has it", "code": "internal"}, status=500)


class _CountRequests:
    """ASGI middleware that counts each request under its route's template, never its raw path."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._requests = telemetry.http_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._requests.labels(route, scope["method"], str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
