"""`/train`: what the learner does, and asking it to."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request, Response

from daemon.errors import UnknownIdError
from daemon.http.answers import json_answer
from daemon.http.bodies import body_schema, content_type, read_body
from daemon.http.service import Service
from daemon.ingest.encoding import decode_json
from daemon.ingest.forms import JSON_LIMIT_BYTES, JSON_TYPE


class TrainBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train`; every field may be absent."""

    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "operator"


def add_train_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/train`."""

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
