"""From a request to samples or inputs: its form looked up, its body read and decoded."""

from __future__ import annotations

import asyncio
import functools

from fastapi import Request

from daemon.http.bodies import content_type, read_body
from daemon.http.service import Service
from daemon.ingest.forms import FORMS, PREDICT_TYPES, SAMPLE_TYPES, Form, Payload
from daemon.ingest.sample import PredictRequest, SampleRequest
from daemon.ingest.tensors import LENGTH_HEADER


async def read_samples(request: Request, service: Service) -> SampleRequest:
    """The samples of a request, in whatever form.

    Raises:
        RequestError: They cannot be read.
    """
    form, payload = await _read(request, SAMPLE_TYPES)
    decode = functools.partial(form.samples, payload, service.spec, service.kept)
    if len(payload.body) > form.inline_bytes:
        return await asyncio.to_thread(decode)
    return decode()


async def read_inputs(request: Request, service: Service) -> PredictRequest:
    """What a request wants predicted, in whatever form.

    Raises:
        RequestError: It cannot be read.
    """
    form, payload = await _read(request, PREDICT_TYPES)
    decode = functools.partial(form.inputs, payload, service.spec)
    if len(payload.body) > form.inline_bytes:
        return await asyncio.to_thread(decode)
    return decode()


async def _read(request: Request, types: tuple[str, ...]) -> tuple[Form, Payload]:
    form = FORMS[content_type(request, *types)]
    body = await read_body(request, form.limit_bytes)
    headers = request.headers
    payload = Payload(
        body, headers.get("content-type", ""), headers.get(LENGTH_HEADER), request.query_params
    )
    return form, payload
