"""`/samples/{id}`: its label, given later or corrected, and its withdrawal."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from daemon.http.answers import json_answer
from daemon.http.bodies import JSON_TYPE, body_schema, content_type, read_body
from daemon.http.service import Service
from daemon.ingest.samples import BODY_LIMIT_BYTES, LabelBody, decode_json


def add_label_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of one sample."""

    @app.post("/samples/{sample_id}/label", openapi_extra=body_schema("{label, replace?}"))
    async def post_label(sample_id: str, request: Request) -> Response:
        """Label a sample, or correct its label; 200 is sent once that is durable."""
        content_type(request, JSON_TYPE)
        asked = decode_json(await read_body(request, BODY_LIMIT_BYTES), LabelBody)
        labelled = await service.store.label(sample_id, asked.label, replace=asked.replace)
        return json_answer(labelled._asdict())

    @app.delete("/samples/{sample_id}")
    async def delete_sample(sample_id: str) -> Response:
        """Withdraw a sample: it counts no longer, and its features are gone from the store."""
        withdrawn = await service.store.withdraw(sample_id)
        return json_answer(withdrawn._asdict())
