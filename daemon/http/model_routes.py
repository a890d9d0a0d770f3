"""`/models`: which versions there are, how each was judged, and which is to serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response

from daemon.errors import (
    StorageError,
    StoreUnavailableError,
    UnknownModelError,
    UnknownVersionError,
)
from daemon.http.answers import json_answer
from daemon.http.bodies import Reason, body_schema, read_object
from daemon.http.service import Service
from daemon.serving.change import CHANGES, Change
from daemon.serving.manifest import VersionEntry
from daemon.serving.promotion import LEDGER
from engines import WeightsError

_SHOWN = 50
_Version = Annotated[str, msgspec.Meta(max_length=20)] | int


class RollbackBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of a rollback; every field may be absent."""

    to: _Version | None = None
    reason: Reason = "operator"


class ActivateBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of an activation."""

    version: _Version
    reason: Reason = "operator"


def add_model_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/models`."""

    async def records(kind: str) -> list[dict[str, Any]]:
        try:
            return await asyncio.to_thread(service.store.records, kind, _SHOWN)
        except (StorageError, StoreUnavailableError):
            # Which versions there are, and what serves, is known without them.
            return []

    def entry_of(model: str, version: str) -> VersionEntry:
        _check_model(service, model)
        if (entry := service.versions.manifest.find(_number(version))) is None:
            raise UnknownVersionError("no such version is kept; GET /models lists them")
        return entry

    async def changed(model: str, reason: str, change: Callable[[], Change]) -> dict[str, Any]:
        _check_model(service, model)
        made = await asyncio.to_thread(change)
        return {
            "model": service.spec.name,
            "active": str(made.active),
            "previous": _name(made.previous),
            "swap_seconds": made.swap_seconds,
            "durable": made.durable,
            "reason": reason,
        }

    @app.get("/models")
    async def get_models() -> Response:
        """The version that serves, those kept, and the newest decisions about candidates."""
        decisions, changes = await records(LEDGER), await records(CHANGES)
        return json_answer(_describe_models(service, decisions) | {"changes": changes})

    @app.get("/models/{model}/versions/{version}")
    async def get_version(model: str, version: str) -> Response:
        """One version that is kept."""
        entry, gates = entry_of(model, version), _gates(await records(LEDGER))
        return json_answer(_describe(service, entry, gates))

    @app.get("/models/{model}/versions/{version}/weights")
    async def get_weights(model: str, version: str) -> Response:
        """A version's file, checked: one that is damaged is not given out."""
        entry = entry_of(model, version)
        try:
            content = await asyncio.to_thread(service.versions.content, entry)
        except FileNotFoundError as error:
            raise UnknownVersionError("this version was removed just now") from error
        except (WeightsError, OSError) as error:
            raise StorageError("the file of this version cannot be read, or is damaged") from error
        name = f"{service.spec.name}-{entry.version}.safetensors"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, 200, headers, "application/octet-stream")

    @app.post("/models/{model}/rollback", openapi_extra=body_schema("{to?, reason?}"))
    async def post_rollback(model: str, request: Request) -> Response:
        """Find the version that serves bad, and have an earlier one serve at once."""
        asked = await read_object(request, RollbackBody)
        to = None if asked.to is None else _number(asked.to)
        through = service.store.learned_seq
        made = await changed(model, asked.reason, lambda: service.swaps.rollback(to, asked.reason))
        after = service.versions.manifest.retreat_seq
        left_out = {"after_seq": after, "through_seq": max(after, through)}
        return json_answer(made | {"left_out": left_out})

    @app.post("/models/{model}/activate", openapi_extra=body_schema("{version, reason?}"))
    async def post_activate(model: str, request: Request) -> Response:
        """Have any version that is kept serve."""
        asked = await read_object(request, ActivateBody)
        version = _number(asked.version)
        return json_answer(
            await changed(
                model, asked.reason, lambda: service.swaps.activate(version, asked.reason)
            )
        )


def _check_model(service: Service, model: str) -> None:
    if model != service.spec.name:
        raise UnknownModelError(f"the model that is served is {service.spec.name}")


def _number(version: str | int) -> int:
    """A version's number; what is none names no version."""
    text = str(version)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _name(version: int | None) -> str | None:
    return None if version is None else str(version)


def _gates(decisions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {decision.pop("version"): decision for decision in decisions}


def _describe(
    service: Service, entry: VersionEntry, gates: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    manifest = service.versions.manifest
    roles = {manifest.active: "active", manifest.previous: "previous"}
    return {
        "version": str(entry.version),
        "role": roles.get(entry.version),
        "state": entry.state,
        "parent": _name(entry.parent),
        "created": entry.created,
        "sha256": entry.sha256,
        "last_seq": entry.last_seq,
        "gate": gates.get(str(entry.version)),
        "delayed": service.delayed.of(entry.version),
    }


def _describe_models(service: Service, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    manifest, gates = service.versions.manifest, _gates(decisions)
    newest_first = sorted(manifest.versions, key=lambda e: -e.version)
    return {
        "model": service.spec.name,
        "input_shape": list(service.spec.input_shape),
        "max_classes": service.spec.max_classes,
        "active": str(manifest.active),
        "previous": _name(manifest.previous),
        "best": str(manifest.best),
        "probation": service.swaps.probation,
        "classes": list(service.slot.current.weights.classes),
        "versions": [_describe(service, entry, gates) for entry in newest_first],
        "refused": [
            {"version": version, "gate": gate}
            for version, gate in gates.items()
            if gate["decision"] == "refused"
        ],
    }
