"""`/models` and `/train`: which versions there are, and what the learner does."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response

from daemon.errors import StorageError, StoreUnavailableError, UnknownIdError
from daemon.http.answers import json_answer
from daemon.http.bodies import body_schema, content_type, read_body
from daemon.http.service import Service
from daemon.ingest.encoding import decode_json
from daemon.ingest.forms import JSON_LIMIT_BYTES, JSON_TYPE
from daemon.promotion import LEDGER

_DECISIONS_SHOWN = 50


class TrainBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train`; every field may be absent."""

    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "operator"


def add_learning_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/models` and `/train`."""

    @app.get("/models")
    async def get_models() -> Response:
        """The version that serves, those kept, and the newest decisions about candidates."""
        try:
            decisions = await asyncio.to_thread(service.store.records, LEDGER, _DECISIONS_SHOWN)
        except (StorageError, StoreUnavailableError):
            # Which versions there are, and what serves, is known without them.
            decisions = []
        return json_answer(_describe_models(service, decisions))

    @app.post("/train", status_code=202, openapi_extra=body_schema("{max_steps?, reason?}"))
    async def post_train(request: Request) -> Response:
        """Have the learner train now; while a job runs, that job is the answer."""
        body = await read_body(request, JSON_LIMIT_BYTES)
        if body:
            content_type(request, JSON_TYPE)
        asked = decode_json(body or b"{}", TrainBody)
        job, new = service.supervisor.request_training(asked.reason, asked.max_steps)
        headers = {"Location": f"/train/{job['job']}"}
        return json_answer(job, status=202 if new else 200, headers=headers)

    @app.get("/train")
    async def get_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
        """Training jobs, newest first."""
        return json_answer({"jobs": service.jobs.list()[:limit]})

    @app.get("/train/{job}")
    async def get_job(job: str) -> Response:
        """One training job."""
        found = service.jobs.find(job)
        if found is None:
            raise UnknownIdError("no such job; GET /train lists them")
        return json_answer(found)


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
        "input_shape": list(service.spec.input_shape),
        "max_classes": service.spec.max_classes,
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
