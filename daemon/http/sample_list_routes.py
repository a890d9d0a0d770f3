"""`GET /samples`: what is kept, page by page, and how much of what."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from daemon.errors import BadFieldError, StoreUnavailableError
from daemon.http.answers import json_answer
from daemon.http.service import Service
from daemon.store import count_samples, list_samples

_PARAMETERS = ("label", "source", "after_seq", "limit", "features")
_LARGEST_SEQ = 2**63 - 1
_Name = Annotated[str | None, Query(min_length=1, max_length=64)]


def add_sample_list_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that list samples."""
    path = service.store.path

    @app.get("/samples")
    async def get_samples(
        request: Request,
        label: _Name = None,
        source: _Name = None,
        after_seq: Annotated[int, Query(ge=0, le=_LARGEST_SEQ)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        features: bool = False,
    ) -> Response:
        """Samples in order of arrival; `label=null` lists those without a label."""
        _check_names(request)
        page = functools.partial(
            list_samples,
            path,
            label=label,
            source=source,
            after_seq=after_seq,
            limit=limit,
            features=features,
        )
        return json_answer(await _read(page, service))

    @app.get("/samples/counts")
    async def get_counts() -> Response:
        """Samples by label and by source."""
        return json_answer(await _read(functools.partial(count_samples, path), service))


def _check_names(request: Request) -> None:
    """Refuse a filter that would be passed over: what it would have left out is not wanted."""
    asked = [name for name, _ in request.query_params.multi_items()]
    if not set(asked) <= set(_PARAMETERS) or len(asked) != len(set(asked)):
        raise BadFieldError(
            f"a query parameter is unknown or repeated: known are {', '.join(_PARAMETERS)}, "
            "each at most once"
        )


async def _read(ask: Callable[[], dict[str, Any]], service: Service) -> dict[str, Any]:
    """What `ask` reads, or why the store is unavailable, which its log told when it became so."""
    try:
        return await asyncio.to_thread(ask)
    except sqlite3.Error as error:
        if (unavailable := service.store.unavailable) is not None:
            cause, why = unavailable.cause, unavailable.why
            raise StoreUnavailableError(cause, why, what="cannot be read") from error
        raise
