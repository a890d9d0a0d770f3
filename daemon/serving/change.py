"""A change of what serves: what it was, who hears of it, and its place in the ledger."""

from __future__ import annotations

import logging
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from daemon.clock import stamp
from daemon.errors import RequestError
from daemon.serving.manifest import Manifest, VersionEntry
from daemon.serving.probation import Paired, Trial
from daemon.store import SampleStore

log = logging.getLogger(__name__)

CHANGES = "change"  # rollbacks and activations, in the store
_LEDGER_SECONDS = 1.0


class Follower(Protocol):
    """The learner's end: told of each change, in order, while no other can happen."""

    def serves(self, manifest: Manifest, *, retreat: bool) -> None:
        """Another version serves that is no new candidate."""

    def passed(self, version: VersionEntry) -> None:
        """A version has passed its probation."""

    def watch(self, trials: list[Trial]) -> None:
        """All that is on probation."""


@dataclass(frozen=True)
class Change:
    """A rollback or an activation that was made.

    Args:
        active: The version that serves from then on.
        previous: The one that a further rollback would go to.
        swap_seconds: How long no request could take a version.
        durable: Whether it would outlive the daemon; what would not is written as soon as it can.
    """

    active: int
    previous: int | None
    swap_seconds: float
    durable: bool


class ChangeLedger:
    """Keeps changes that were made; one that cannot be kept is in the log and the manifest.

    Args:
        store: Has the ledger.
    """

    def __init__(self, store: SampleStore) -> None:
        self._store = store
        self._newest: Future[None] | None = None

    def add(
        self,
        number: int,
        result: str,
        versions: tuple[int, int],
        by: str,
        reason: str,
        found: Paired | None = None,
    ) -> None:
        """Keep a change now, or when the store is available again.

        Args:
            number: The manifest's count of changes.
            result: `rolled_back` or `activated`.
            versions: What served before, and what serves since.
            by: Who asked for it.
            reason: Why.
            found: What probation had found.
        """
        record: dict[str, Any] = {
            "change": number,
            "result": result,
            "from": str(versions[0]),
            "to": str(versions[1]),
            "by": by,
            "reason": reason,
            "probation": None if found is None else asdict(found),
            "decided": stamp(),
        }
        log.warning("version changed", extra=record)
        try:
            self._newest = self._store.record_when_possible(CHANGES, number, record)
        except RequestError as error:
            log.error("change cannot be recorded", extra={"why": str(error)})

    def settle(self) -> None:
        """Wait a while for the newest, so that who asks next finds it."""
        if self._newest is not None:
            wait([self._newest], 0 if self._store.unavailable else _LEDGER_SECONDS)
