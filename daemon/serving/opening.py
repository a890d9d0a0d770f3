"""A kept version made ready to answer, as it did for the learner."""

from __future__ import annotations

import logging

from daemon.errors import StorageError
from daemon.serving.manifest import VersionEntry
from daemon.serving.slot import Served
from daemon.serving.versions import VersionStore
from engines import (
    EngineFailedError,
    EngineUnavailableError,
    Opened,
    WeightsError,
    canary_agrees,
    is_out_of_memory,
)
from models import ModelSpec

log = logging.getLogger(__name__)
_FOUND = (WeightsError, OSError, EngineUnavailableError, EngineFailedError)


def is_its_own(error: Exception) -> bool:
    """Whether the version, or memory, is why it does not open; else it is a mistake of ours."""
    return isinstance(error, _FOUND) or is_out_of_memory(error)


def open_version(
    versions: VersionStore, entry: VersionEntry, engine: Opened, spec: ModelSpec
) -> Served:
    """Read a version, check it, and open it; it can take seconds, so no lock is held over it.

    Args:
        versions: Has its file.
        entry: Which.
        engine: Opens it.
        spec: The network that is served.

    Raises:
        StorageError: Its file is damaged or cannot be read, no engine serves it, or memory ran out.
    """
    opened = None
    try:
        weights = versions.load(entry)
        opened = engine.open(weights)
        if weights.spec != spec:
            raise WeightsError("it is of another network")
        if not canary_agrees(weights, opened):
            raise WeightsError("the engine answers otherwise than the learner did")
    except Exception as error:
        if opened is not None:
            opened.close()
        if not is_its_own(error):
            raise
        log.error("version cannot serve", extra={"version": entry.version, "why": str(error)})
        why = (
            "memory ran out: ask again"
            if is_out_of_memory(error)
            else "the version's file is damaged, or no engine serves it"
        )
        raise StorageError(f"{why}; the version that served goes on, the log says more") from error
    return Served(weights, opened)
