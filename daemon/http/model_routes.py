"""`/models`: which versions there are, and how each was judged."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Response

from daemon.errors import StorageError, StoreUnavailableError
from daemon.http.answers import json_answer
from daemon.http.service import Service
from daemon.serving.promotion import LEDGER

_DECISIONS_SHOWN = 50


def add_model_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of `/models`."""

    @app.get("/models")
    async def get_models() -> Response:
        """The version that serves, those kept, and the newest decisions about candidates."""
        try:
            decisions = await asyncio.to_thread(service.store.records, LEDGER, _DECISIONS_SHOWN)
        except (StorageError, StoreUnavailableError):
            # Which versions there are, and what serves, is known without them.
            decisions = []
        return json_answer(_describe_models(service, decisions))


def _describe_models(service: Service, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = service.versions.manifest
    gates = {decision.pop("version"): decision for decision in decisions}
    roles = {manifest.active: "active", manifest.previous: "previous"}
    versions = [
        {
            "version": str(entry.version),
            "role": roles.get(entry.version),
            "state": "good",
            "parent": None if entry.parent is None else str(entry.parent),
            "created": entry.created,
            "sha256": entry.sha256,
            "last_seq": entry.last_seq,
            "gate": gates.get(str(entry.version)),
            "delayed": service.delayed.of(entry.version),
        }
        for entry in sorted(manifest.versions, key=lambda e: -e.version)
    ]
    return {
        "model": service.spec.name,
        "input_shape": list(service.spec.input_shape),
        "max_classes": service.spec.max_classes,
        "active": str(manifest.active),
        "previous": None if manifest.previous is None else str(manifest.previous),
        "classes": list(service.slot.current.weights.classes),
        "versions": versions,
        "refused": [
            {"version": version, "gate": gate}
            for version, gate in gates.items()
            if gate["decision"] == "refused"
        ],
    }
