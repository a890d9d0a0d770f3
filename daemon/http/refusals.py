"""How a request is refused before it reaches the app: in the same words and shape as by it."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from daemon.errors import BusyError, RequestError
from daemon.http.answers import json_answer

OVERLOADED = "more samples arrive than can be kept: send them again later, fewer at once"
CROWDED = "the bodies of other requests take all the memory for them: send it again later"


def refusing(error: RequestError, *, close: bool) -> Any:  # noqa: ANN401 - uvicorn's type of an application
    """An app that answers one request with an error."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Connection": "close"} if close else {}
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        answer = json_answer(error.body(), status=error.status, headers=headers)
        await answer(scope, receive, send)

    return refuse


def raw_answer(error: RequestError, *, close: bool) -> bytes:
    """An error as it goes over the wire."""
    body = msgspec.json.encode(error.body())
    retry = error.retry_after_seconds
    return b"".join(
        [
            STATUS_LINE[error.status],
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
            b"" if retry is None else b"retry-after: %d\r\n" % retry,
            b"connection: close\r\n\r\n" if close else b"\r\n",
            body,
        ]
    )


@functools.cache
def busy_answer(reason: str, *, close: bool) -> bytes:
    """As `raw_answer`, for one of the reasons above; made once, since many are sent in a hurry."""
    return raw_answer(BusyError(reason), close=close)
