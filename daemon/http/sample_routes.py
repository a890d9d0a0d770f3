"""`/samples`: what sensors send, decoded, kept, and answered once it is durable."""

from __future__ import annotations

import functools
import re
from collections import Counter
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response

from daemon.errors import (
    AllRefusedError,
    BadFieldError,
    RequestError,
)
from daemon.http.bodies import body_schema
from daemon.http.decoding import read_samples
from daemon.http.service import Service
from daemon.ingest.forms import JSON_TYPE, SAMPLE_TYPES
from daemon.ingest.sample import Sample, SampleRequest
from daemon.store import Acknowledgement, KeyedAnswer, Outcome, Stored, request_key

_KEY = "Idempotency-Key"
_Kept = TypeVar("_Kept", list[Outcome], KeyedAnswer)


def add_sample_routes(app: FastAPI, service: Service) -> None:
    """Add the route that takes samples."""

    @app.post(
        "/samples",
        status_code=201,
        openapi_extra=body_schema("{x, label?} or {samples: [...]}", *SAMPLE_TYPES),
    )
    async def post_samples(request: Request) -> Response:
        """Keep samples; 201 is sent once they are durable."""
        key = _key(request)
        return await _keep(await read_samples(request, service), key, service)


async def _keep(request: SampleRequest, key: str | None, service: Service) -> Response:
    samples = [entry for entry in request.entries if isinstance(entry, Sample)]
    tell = functools.partial(_tell, request, service)
    answer: bytes | None = None
    if not samples:
        results: list[Outcome] = []
    elif key is None:
        results = await _then_scored(service.store.add(samples), samples, service)
    else:
        added = service.store.add_once(samples, request_key(key, request.entries), tell)
        keyed = await _then_scored(added, samples, service)
        answer, results = keyed.body, keyed.outcomes
        if keyed.replayed:
            for sample in samples:
                service.telemetry.received(sample.source, "duplicate")
            return Response(answer, 201, {"Idempotent-Replayed": "true"}, JSON_TYPE)
    _count(request, results, service)
    _check_kept(request, results)
    made = [entry for entry in results if isinstance(entry, Stored)]
    # A prediction's label sent again makes nothing.
    nothing = request.single and made[0].duplicate and samples[0].predicted
    return Response(answer or tell(results), 200 if nothing else 201, None, JSON_TYPE)


def _key(request: Request) -> str | None:
    key = request.headers.get(_KEY)
    if key is not None and not re.fullmatch("[ -~]{1,128}", key):
        raise BadFieldError(
            f"header {_KEY}: 1 to 128 printable ASCII characters are wanted", field=_KEY
        )
    return key


def _then_scored(
    added: Acknowledgement[_Kept], samples: list[Sample], service: Service
) -> Acknowledgement[_Kept]:
    """Has predictions scored when their label is durable, also if its sender is gone by then."""

    def score(done: Future[_Kept]) -> None:
        if done.exception() is not None:
            return
        kept = done.result()
        outcomes = kept.outcomes if isinstance(kept, KeyedAnswer) else kept
        for sample, outcome in zip(samples, outcomes, strict=False):  # a repeat has none
            made = service.kept.answered(sample.id) if sample.predicted else None
            if made and isinstance(outcome, Stored) and not outcome.duplicate:
                service.delayed.add(made.version, right=str(made.label) == str(sample.label))
        service.delayed.save()

    if any(sample.predicted for sample in samples):
        added.add_done_callback(score)
    return added


def _outcomes(request: SampleRequest, results: list[Outcome]) -> list[Outcome]:
    """Of each entry, in order: `results` are those of the samples among them."""
    stored = iter(results)
    return [next(stored) if isinstance(entry, Sample) else entry for entry in request.entries]


def _tell(request: SampleRequest, service: Service, results: list[Outcome]) -> bytes:
    """The answer to a request of which something was kept."""
    outcomes = _outcomes(request, results)
    stored = [entry for entry in outcomes if isinstance(entry, Stored)]
    new = [entry.seq for entry in stored if not entry.duplicate]
    return msgspec.json.encode(
        {
            "accepted": len(new),
            "duplicates": len(stored) - len(new),
            "rejected": _rejected(outcomes),
            "ids": [entry.id if isinstance(entry, Stored) else None for entry in outcomes],
            "first_seq": min(new, default=None),
            "last_seq": max(new, default=None),
            "queue_depth": service.store.queue_depth,
        }
    )


def _check_kept(request: SampleRequest, results: list[Outcome]) -> None:
    outcomes = _outcomes(request, results)
    if any(isinstance(entry, Stored) for entry in outcomes):
        return
    if request.single and isinstance(outcomes[0], RequestError):
        raise outcomes[0]
    raise AllRefusedError(_rejected(outcomes))


def _rejected(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    return [
        {"index": index} | entry.body()
        for index, entry in enumerate(outcomes)
        if isinstance(entry, RequestError)
    ]


def _count(request: SampleRequest, results: list[Outcome], service: Service) -> None:
    """By source and by what became of them; in one go, since many have the same."""
    received: Counter[tuple[str, str]] = Counter()
    for entry, outcome in zip(request.entries, _outcomes(request, results), strict=True):
        source = entry.source if isinstance(entry, Sample) else ""
        if isinstance(outcome, RequestError):
            received[source, "rejected"] += 1
        else:
            received[source, "duplicate" if outcome.duplicate else "accepted"] += 1
    for (source, result), count in received.items():
        service.telemetry.received(source, result, count)
