"""`/samples`: what sensors send, decoded, kept, and answered once it is durable."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response

from daemon.errors import AllRefusedError, IdConflictError, LabelConflictError, RequestError
from daemon.http.answers import json_answer
from daemon.http.bodies import body_schema
from daemon.http.decoding import read_samples
from daemon.http.service import Service
from daemon.ingest.forms import SAMPLE_TYPES
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.sample import Sample
from daemon.store import Stored


def add_sample_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/samples`."""

    @app.post(
        "/samples",
        status_code=201,
        openapi_extra=body_schema("{x, label?} or {samples: [...]}", *SAMPLE_TYPES),
    )
    async def post_samples(request: Request) -> Response:
        """Keep labelled samples; 201 is sent once they are durable."""
        decoded = await read_samples(request, service)
        results: list[Stored | RequestError] = []
        samples = [entry for entry in decoded.entries if isinstance(entry, Sample)]
        if samples:
            results = await asyncio.wrap_future(service.store.add(samples))
            name_label_conflicts(samples, results, service.kept)
        stored = iter(results)
        outcome = [
            next(stored) if isinstance(entry, Sample) else entry for entry in decoded.entries
        ]
        sources = [e.source if isinstance(e, Sample) else "" for e in decoded.entries]
        return _answer_samples(outcome, sources, service, single=decoded.single)


def name_label_conflicts(
    samples: list[Sample], results: list[Stored | RequestError], kept: KeptPredictions
) -> None:
    """Say of a prediction whose id is stored already what differs: its features cannot."""
    for index, (sample, result) in enumerate(zip(samples, results, strict=True)):
        if isinstance(result, IdConflictError) and sample.id is not None and sample.id in kept:
            results[index] = LabelConflictError(
                "this prediction was given another label before; the sample of the same id has it",
                field="label",
            )


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
        # A prediction's label sent again makes nothing.
        status=200 if single and not new and stored[0].id in service.kept else 201,
    )
