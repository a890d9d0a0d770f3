"""`POST /predict`: one answer, from one version."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from typing import Any

from fastapi import FastAPI, Request, Response

from daemon.errors import EngineError, RequestError
from daemon.http.answers import json_answer
from daemon.http.bodies import JSON_TYPE, body_schema, content_type, read_body
from daemon.http.service import Service
from daemon.ingest.samples import BODY_LIMIT_BYTES, decode_predict_request
from engines import EngineFailedError

log = logging.getLogger(__name__)


def add_predict_routes(app: FastAPI, service: Service, predicting: Executor) -> None:
    """Add the route of `/predict`.

    Args:
        app: What they are added to.
        service: What it works with.
        predicting: Where predictions compute: off the event loop, so that a slow one does not hold
            up ingest.
    """

    @app.post("/predict", openapi_extra=body_schema("{x} or {samples: [{x}, ...]}"))
    async def post_predict(request: Request) -> Response:
        """Answer from the version that serves now; one answer never mixes two versions."""
        started = time.monotonic()
        code = 500
        try:
            content_type(request, JSON_TYPE)
            body = await read_body(request, BODY_LIMIT_BYTES)
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
            return json_answer(content)
        except RequestError as error:
            code = error.status
            raise
        finally:
            service.telemetry.inference_requests.labels(str(code)).inc()
            service.telemetry.inference_seconds.observe(time.monotonic() - started)
