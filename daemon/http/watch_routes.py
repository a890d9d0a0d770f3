"""`/metrics` and `/health`: how the daemon does."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from daemon.http.answers import json_answer
from daemon.http.predict_check import PredictCheck
from daemon.http.service import Service


def add_watch_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/metrics` and `/health`."""

    @app.get("/metrics")
    async def get_metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(service.telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health/live")
    async def get_live() -> Response:
        """The process answers."""
        return json_answer({"live": True})

    predicts = PredictCheck(service.spec, service.slot, service.predicting)

    @app.get("/health/ready")
    async def get_ready(of: Literal["ingest", "predict"] | None = None) -> Response:
        """Samples are kept and predictions answered, or that of the two which `of` asks about.

        The learner may be down meanwhile.
        """
        store = service.store
        removed = store.removed.summary
        why = "the queue is full" if store.queue_depth >= store.queue_limit else None
        if store.refuses is not None:
            why = store.refuses.why
        unpredictable = await predicts.why_not()
        well = {"ingest": why is None, "predict": unpredictable is None}
        ready = all(well.values()) if of is None else well[of]
        status = {
            "ready": ready,
            "live": True,
            "ingest": {
                "ok": well["ingest"],
                "why": why,
                "cause": None if store.refuses is None else store.refuses.cause,
            },
            "predict": {"ok": well["predict"], "why": unpredictable},
            "samples_lost": store.samples_lost,
            "removed": None if removed is None else removed._asdict(),
            "learner": service.supervisor.up,
            "learning_paused": service.supervisor.paused,
            "learning": service.governor.state.to_json(),
            "power": service.power.sources(),
        }
        return json_answer(status, status=200 if ready else 503)
