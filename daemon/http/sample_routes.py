"""`/samples`: what sensors send, decoded, kept, and answered once it is durable."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from fastapi import FastAPI, Request, Response

from daemon.errors import AllRefusedError, RequestError
from daemon.http.answers import json_answer
from daemon.http.bodies import JSON_TYPE, STREAM_TYPE, body_schema, content_type, read_body
from daemon.http.service import Service
from daemon.ingest.samples import (
    BODY_LIMIT_BYTES,
    STREAM_LIMIT_BYTES,
    Sample,
    decode_sample_request,
)
from daemon.store import Stored

_LARGE_BYTES = 16 << 10


def add_sample_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/samples`."""

    @app.post(
        "/samples", status_code=201, openapi_extra=body_schema("{x, label} or {samples: [...]}")
    )
    async def post_samples(request: Request) -> Response:
        """Keep labelled samples; 201 is sent once they are durable."""
        kind = content_type(request, JSON_TYPE, STREAM_TYPE)
        stream = kind == STREAM_TYPE
        limit = STREAM_LIMIT_BYTES if stream else BODY_LIMIT_BYTES
        body = await read_body(request, limit)
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
    return json_answer(
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
