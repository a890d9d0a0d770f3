"""`/metrics` and `/health`: how the daemon does."""

from __future__ import annotations

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from daemon.http.answers import json_answer
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
        return json_answer(status, status=503 if full else 200)
