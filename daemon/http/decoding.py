"""From a request to samples or inputs: its form looked up, its body read and decoded."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from daemon.errors import BadFieldError
from daemon.http.bodies import content_type, read_body
from daemon.http.decode_threads import DecodeThreads
from daemon.http.service import Service
from daemon.ingest.forms import FORMS, PREDICT_TYPES, SAMPLE_TYPES, Form, Payload
from daemon.ingest.sample import PredictRequest, SampleRequest
from daemon.ingest.tensors import LENGTH_HEADER

_T = TypeVar("_T")
# Their label has no other place.
_BARE_PICTURES = "image/"
# One thread, so that one picture is in memory at a time, and what it leaves behind is used again.
_alone = DecodeThreads(1, "pictures")
# As many as are in memory at once, decoded: what they become is larger than they are.
_large = DecodeThreads(2, "decode")


async def read_samples(request: Request, service: Service) -> SampleRequest:
    """The samples of a request, in whatever form.

    Raises:
        RequestError: They cannot be read.
    """
    form, payload = await _read(request, SAMPLE_TYPES)
    decode = functools.partial(form.samples, payload, service.spec, service.kept)
    return await _decoded(form, payload, decode)


async def read_inputs(request: Request, service: Service) -> PredictRequest:
    """What a request wants predicted, in whatever form.

    Raises:
        RequestError: It cannot be read.
    """
    form, payload = await _read(request, PREDICT_TYPES)
    decode = functools.partial(form.inputs, payload, service.spec)
    return await _decoded(form, payload, decode)


async def _read(request: Request, types: tuple[str, ...]) -> tuple[Form, Payload]:
    kind = content_type(request, *types)
    form, query = FORMS[kind], request.query_params
    if query and not kind.startswith(_BARE_PICTURES):
        raise BadFieldError("parameters of the URL go with a bare picture alone: the body has them")
    if len(query.multi_items()) > len(query):
        raise BadFieldError("a parameter of the URL is repeated; wanted once")
    body = await read_body(request, form.limit_bytes)
    headers = request.headers
    payload = Payload(body, headers.get("content-type", ""), headers.get(LENGTH_HEADER), query)
    return form, payload


async def _decoded(form: Form, payload: Payload, decode: Callable[[], _T]) -> _T:
    if len(payload.body) <= form.inline_bytes:
        return decode()
    threads = _alone if form.alone else _large
    return await asyncio.get_running_loop().run_in_executor(threads, decode)
