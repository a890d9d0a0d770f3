"""Request bodies: read raw, bounded while they arrive, and described for `/docs`.

They are decoded by `daemon.ingest`: a stock FastAPI body answers 500 to some malformed JSON and
repeats input in its errors.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Request

from daemon.errors import ContentTypeError, TooLargeError
from daemon.ingest.encoding import decode_json
from daemon.ingest.forms import JSON_LIMIT_BYTES, JSON_TYPE

Body = TypeVar("Body")
# An operator's words stand in logs and tables: in one line, and nothing that steers a terminal.
Reason = Annotated[
    str,
    msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z"),
]


async def read_body(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it exceeds its limit, whatever length was claimed."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the body exceeds {limit} bytes: send several requests")
        parts.append(part)
    return b"".join(parts)


def content_type(request: Request, *wanted: str) -> str:
    """Which of the wanted content types the body has.

    Raises:
        ContentTypeError: None of them, or it is compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ContentTypeError("compressed bodies are not read: send it without Content-Encoding")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in wanted:
        raise ContentTypeError(f"Content-Type must be {' or '.join(wanted)}")
    return kind


async def read_object(request: Request, kind: type[Body]) -> Body:
    """A body that is one small JSON object; none at all is an empty one.

    Raises:
        RequestError: It is no JSON, or not of this type.
    """
    body = await read_body(request, JSON_LIMIT_BYTES)
    if body:
        content_type(request, JSON_TYPE)
    return decode_json(body or b"{}", kind)


def body_schema(description: str, *types: str) -> dict[str, Any]:
    """What `/docs` says of a body that is read raw: an object in JSON, bytes in other types."""
    schema = {"type": "object", "description": description}
    raw = {"schema": {"type": "string", "format": "binary"}}
    content = dict.fromkeys(types, raw) | {JSON_TYPE: {"schema": schema}}
    return {"requestBody": {"content": content, "required": True}}
