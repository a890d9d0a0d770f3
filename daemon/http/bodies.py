"""Request bodies: read raw, bounded while they arrive, and described for `/docs`.

They are decoded by `daemon.ingest`: a stock FastAPI body answers 500 to some malformed JSON and
repeats input in its errors.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from daemon.errors import ContentTypeError, TooLargeError
from daemon.ingest.forms import JSON_TYPE


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


def body_schema(description: str, *types: str) -> dict[str, Any]:
    """What `/docs` says of a body that is read raw: an object in JSON, bytes in other types."""
    schema = {"type": "object", "description": description}
    raw = {"schema": {"type": "string", "format": "binary"}}
    content = dict.fromkeys(types, raw) | {JSON_TYPE: {"schema": schema}}
    return {"requestBody": {"content": content, "required": True}}
