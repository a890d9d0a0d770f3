"""Answers: JSON; each error is one object of `error`, `code` and, where there is one, `field`."""

from __future__ import annotations

import logging

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from daemon.errors import BadFieldError, RequestError, StorageError
from daemon.http.bodies import JSON_TYPE

log = logging.getLogger(__name__)


def json_answer(
    content: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`content` as JSON, with exactly `application/json`: some clients drop the text otherwise."""
    return Response(msgspec.json.encode(content), status, headers, JSON_TYPE)


async def answer_request_error(_: Request, error: Exception) -> Response:
    """An error of ours, as its class says."""
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this type
    retry = error.retry_after_seconds
    headers = None if retry is None else {"Retry-After": str(retry)}
    return json_answer(error.body(), status=error.status, headers=headers)


async def answer_bad_parameter(request: Request, error: Exception) -> Response:
    """A query parameter that FastAPI refused."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    wrong = BadFieldError(f"parameter '{name}': {first['msg']}", field=name)
    return await answer_request_error(request, wrong)


async def answer_http_error(_: Request, error: Exception) -> Response:
    """What the framework refuses by itself."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    known = {
        404: ("no such route; /docs lists them", "unknown_route"),
        405: ("this route has another method; /docs lists them", "method"),
    }
    text, code = known.get(error.status_code, (error.detail, "http"))
    headers = dict(error.headers) if error.headers else None
    body = {"error": text, "code": code}
    return json_answer(body, status=error.status_code, headers=headers)


async def answer_unreadable(request: Request, error: Exception) -> Response:
    """The database cannot be read: a damaged page, or a disk that fails."""
    log.error("database cannot be read", extra={"path": request.url.path, "why": str(error)})
    return await answer_request_error(request, StorageError("the store cannot be read now"))


async def answer_bug(request: Request, error: Exception) -> Response:
    """Anything else: logged, and no detail told."""
    log.error("unhandled error", extra={"path": request.url.path}, exc_info=error)
    return json_answer({"error": "internal error; the log has it", "code": "internal"}, status=500)
