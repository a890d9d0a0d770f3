"""`/train`: what the learner does, and asking it to."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response

from daemon.errors import UnknownIdError
from daemon.http.answers import json_answer
from daemon.http.bodies import Reason, body_schema, read_object
from daemon.http.service import Service
from daemon.supervision.supervisor import NOTED
from daemon.telemetry import LEARNER_EVENTS


class PauseBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train/pause`; every field may be absent."""

    reason: Reason = "no reason given"
    seconds: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] | None = None


class ResumeBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train/resume`: it has no fields."""


class TrainBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train`; every field may be absent."""

    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    max_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    reason: Reason = "operator"


def add_train_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/train`."""

    def events(limit: int) -> list[dict[str, Any]]:
        return service.store.last_recorded([f"{NOTED}_{kind}" for kind in LEARNER_EVENTS], limit)

    @app.post(
        "/train", status_code=202, openapi_extra=body_schema("{max_steps?, max_seconds?, reason?}")
    )
    async def post_train(request: Request) -> Response:
        """Have the learner train now; while a job runs, that job is the answer."""
        asked = await read_object(request, TrainBody)
        # In a thread: it waits for the disk.
        job, new = await asyncio.to_thread(
            service.supervisor.request_training, asked.reason, asked.max_steps, asked.max_seconds
        )
        headers = {"Location": f"/train/{job['job']}"}
        content = job | {"learning": service.governor.state.to_json()}
        return json_answer(content, status=202 if new else 200, headers=headers)

    @app.post("/train/pause", openapi_extra=body_schema("{reason?, seconds?}"))
    async def post_pause(request: Request) -> Response:
        """Learn nothing until resumed, or for so long; a later pause replaces an earlier one."""
        asked = await read_object(request, PauseBody)
        # In a thread: it waits for the disk.
        kept = await asyncio.to_thread(service.governor.pause, asked.reason, asked.seconds)
        return json_answer({"durable": kept, "learning": service.governor.state.to_json()})

    @app.post("/train/resume", openapi_extra=body_schema("{}"))
    async def post_resume(request: Request) -> Response:
        """End an operator's pause; other reasons to pause may go on."""
        await read_object(request, ResumeBody)
        kept = await asyncio.to_thread(service.governor.resume)
        return json_answer({"durable": kept, "learning": service.governor.state.to_json()})

    @app.get("/train")
    async def get_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
        """Training jobs, newest first."""
        learning = service.governor.state.to_json()
        return json_answer({"learning": learning, "jobs": service.jobs.list()[:limit]})

    @app.get("/train/events")
    async def get_events(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
        """What has happened to the network that learns, newest first."""
        return json_answer({"events": await asyncio.to_thread(events, limit)})

    @app.get("/train/{job}")
    async def get_job(job: str) -> Response:
        """One training job."""
        found = service.jobs.find(job)
        if found is None:
            raise UnknownIdError("no such job; GET /train lists them")
        return json_answer(found | {"learning": service.governor.state.to_json()})
