"""From candidate to serving: verify, open, judge, record, swap. Runs off the request path."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import wait
from typing import Any

from daemon.clock import stamp
from daemon.config import GateSettings
from daemon.errors import RequestError
from daemon.serving.gate import Decision, Scores, becomes_best, judge
from daemon.serving.slot import ServingSlot
from daemon.serving.swaps import Swaps
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from daemon.telemetry import Telemetry
from engines import (
    EngineFailedError,
    EngineUnavailableError,
    Opened,
    PredictEngine,
    Weights,
    WeightsError,
)

log = logging.getLogger(__name__)

LEDGER = "decision"
# How long a refusal waits to be on record; a store that fails meanwhile keeps it for later.
_LEDGER_SECONDS = 5.0


class Promotion:
    """Takes candidates one at a time.

    Args:
        versions: Reads candidates, and uses up the numbers of those refused.
        swaps: Lets one serve.
        slot: What answers now.
        store: Keeps the ledger of decisions.
        engine: Opens candidates for serving.
        settings: The gate's.
        telemetry: Counts decisions.
    """

    def __init__(
        self,
        versions: VersionStore,
        swaps: Swaps,
        slot: ServingSlot,
        store: SampleStore,
        engine: Opened,
        settings: GateSettings,
        telemetry: Telemetry,
    ) -> None:
        self._versions = versions
        self._swaps = swaps
        self._slot = slot
        self._store = store
        self._engine = engine
        self._settings = settings
        self._telemetry = telemetry

    def consider(self, version: int, sha256: str, scores: Scores) -> Decision:
        """Judge a candidate whose file is in place, and let it serve if it passes.

        The manifest is durable before the swap: after a crash the daemon starts with the version
        whose answers clients may have seen, or with one that was about to answer.

        Returns:
            The decision, which is also in the ledger.
        """
        with self._swaps.still():
            decision = self._consider(version, sha256, scores)
        self._count(decision)
        return decision

    def _consider(self, version: int, sha256: str, scores: Scores) -> Decision:
        incumbent = self._slot.current.weights.version
        try:
            weights = self._versions.verify(version, sha256)
            if self._overtaken(weights, incumbent):
                margin = self._settings.margin
                return self._refuse(
                    Decision(version, incumbent, False, "overtaken", scores, margin)
                )
            if weights.spec != self._slot.current.weights.spec:
                raise WeightsError("they are of another network")
            engine = self._engine.open(weights)
        except (WeightsError, OSError) as error:
            decision = self._not_opened(version, incumbent, scores, "damaged", error)
        except (EngineUnavailableError, EngineFailedError) as error:
            decision = self._not_opened(version, incumbent, scores, "engine", error)
        else:
            decision = self._decide(weights, incumbent, engine, scores)
        return decision

    def _overtaken(self, weights: Weights, incumbent: int) -> bool:
        """It was compared with a version that serves no more, or has learned from what is bad."""
        return self._swaps.manifest.retreat > 0 or weights.parent not in (None, incumbent)

    def _decide(
        self, weights: Weights, incumbent: int, engine: PredictEngine, scores: Scores
    ) -> Decision:
        decision = judge(weights, incumbent, engine, scores, self._settings)
        if decision.accepted:
            # First the ledger, then manifest and swap: what serves is always on record.
            try:
                self._store.record(LEDGER, decision.version, _record(decision)).result()
                self._swaps.accept(weights, engine, best=becomes_best(scores))
            except (RequestError, OSError) as error:
                log.error("candidate cannot be recorded", extra={"why": str(error)})
                decision = dataclasses.replace(decision, accepted=False, reason="storage")
        if not decision.accepted:
            engine.close()
            return self._refuse(decision)
        log.info("gate decision", extra=_record(decision))
        return decision

    def _not_opened(
        self, version: int, incumbent: int, scores: Scores, reason: str, error: Exception
    ) -> Decision:
        log.error("candidate does not open", extra={"version": version, "why": str(error)})
        margin = self._settings.margin
        return self._refuse(Decision(version, incumbent, False, reason, scores, margin))

    def _refuse(self, decision: Decision) -> Decision:
        """On record as soon as the store takes it; a disk that is full does not stop judging."""
        record = _record(decision)
        kept = self._store.record_when_possible(LEDGER, decision.version, record)
        wait([kept], 0 if self._store.unavailable else _LEDGER_SECONDS)
        log.info("gate decision", extra=record)
        try:
            self._versions.refuse(decision.version)
        except OSError as error:
            log.error("manifest cannot be written", extra={"why": str(error)})
        return decision

    def _count(self, decision: Decision) -> None:
        body = decision.to_json()
        self._telemetry.gate_decisions.labels(body["decision"], decision.reason or "").inc()
        if decision.scores.n:
            active = "candidate_accuracy" if decision.accepted else "incumbent_accuracy"
            self._telemetry.holdout_accuracy.labels("active").set(body[active])
            self._telemetry.holdout_accuracy.labels("candidate").set(body["candidate_accuracy"])
            self._telemetry.holdout_samples.set(decision.scores.n)


def _record(decision: Decision) -> dict[str, Any]:
    return {"version": str(decision.version), **decision.to_json(), "decided": stamp()}
