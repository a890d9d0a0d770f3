"""`POST /predict`: one answer, from one version."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fastapi import FastAPI, Request, Response

from daemon.errors import EngineError, RequestError
from daemon.http.answers import json_answer
from daemon.http.bodies import body_schema
from daemon.http.decoding import read_inputs
from daemon.http.service import Service
from daemon.ingest.forms import PREDICT_TYPES
from daemon.ingest.kept_predictions import (
    KeptPrediction,
    KeptPredictions,
    new_prediction_id,
)
from daemon.ingest.sample import PredictRequest, pack_rows
from engines import EngineFailedError

log = logging.getLogger(__name__)

# A large batch of a slow network takes a minute: others get their turn between its parts, and it
# shows that the predictor gets on.
_PART_SAMPLES = 32


def add_predict_routes(app: FastAPI, service: Service) -> None:
    """Add the route of `/predict`."""

    @app.post(
        "/predict",
        openapi_extra=body_schema("{x, keep?} or {samples: [{x}, ...], keep?}", *PREDICT_TYPES),
    )
    async def post_predict(request: Request) -> Response:
        """Answer from the version that serves now; one answer never mixes two versions."""
        started = time.monotonic()
        code = 500
        try:
            asked = await read_inputs(request, service)
            served = service.slot.current
            loop = asyncio.get_running_loop()
            try:
                answers = []
                for start in range(0, len(asked.x), _PART_SAMPLES):
                    part = asked.x[start : start + _PART_SAMPLES]
                    answers += await loop.run_in_executor(service.predicting, served.answer, part)
            except EngineFailedError as error:
                service.slot.failed(served)
                log.error("engine did not answer", extra={"why": str(error)})
                raise EngineError("the engine did not answer: try again") from error
            service.slot.answered(served)
            content: dict[str, Any] = {
                "model": service.spec.name,
                "model_version": str(served.weights.version),
            }
            named = _named(answers, asked, service.kept, served.weights.version)
            content |= named[0] if asked.single else {"predictions": named}
            code = 200
            return json_answer(content)
        except RequestError as error:
            code = error.status
            raise
        finally:
            service.telemetry.inference_requests.labels(str(code)).inc()
            ended = time.monotonic()
            service.telemetry.inference_seconds.observe(ended - started)
            service.governor.latencies.add(ended, ended - started)


def _named(
    answers: list[dict[str, Any]], asked: PredictRequest, kept: KeptPredictions, version: int
) -> list[dict[str, Any]]:
    """Each answer with an id, under which a label may come later if its features are kept."""
    keep = kept.by_default if asked.keep is None else asked.keep
    named = [{"id": new_prediction_id(), **answer, "kept": keep} for answer in answers]
    if keep:
        rows = pack_rows(asked.x.reshape(len(asked.x), -1))
        for answer, (features, dtype) in zip(named, rows, strict=True):
            # A copy: a slice would hold the memory of the whole request.
            prediction = KeptPrediction(bytes(features), dtype, answer["label"], version)
            kept.keep(answer["id"], prediction)
    return named
