"""From candidate to serving: verify, open, judge, record, swap. Runs off the request path."""

from __future__ import annotations

import logging
from typing import Any

from daemon.clock import stamp
from daemon.config import GateSettings
from daemon.gate import Decision, Scores, becomes_best, judge
from daemon.serving import Served, ServingSlot
from daemon.store import SampleStore
from daemon.telemetry import Telemetry
from daemon.versions import VersionStore
from engines import EngineFailedError, EngineUnavailableError, Opened, WeightsError

log = logging.getLogger(__name__)

LEDGER = "decision"


class Promotion:
    """Takes candidates one at a time.

    Args:
        versions: Owns the manifest.
        slot: What answers now.
        store: Keeps the ledger of decisions.
        engine: Opens candidates for serving.
        settings: The gate's.
        telemetry: Counts decisions and swaps.
    """

    def __init__(
        self,
        versions: VersionStore,
        slot: ServingSlot,
        store: SampleStore,
        engine: Opened,
        settings: GateSettings,
        telemetry: Telemetry,
    ) -> None:
        self._versions = versions
        self._slot = slot
        self._store = store
        self._engine = engine
        self._settings = settings
        self._telemetry = telemetry
        telemetry.model_version.set(slot.current.weights.version)

    def consider(self, version: int, sha256: str, scores: Scores) -> Decision:
        """Judge a candidate whose file is in place, and let it serve if it passes.

        The manifest is durable before the swap: after a crash the daemon starts with the version
        whose answers clients may have seen, or with one that was about to answer.

        Returns:
            The decision, which is also in the ledger.
        """
        incumbent = self._slot.current.weights.version
        try:
            weights = self._versions.verify(version, sha256)
            if weights.spec != self._slot.current.weights.spec:
                raise WeightsError("they are of another network")
            engine = self._engine.open(weights)
        except (WeightsError, OSError) as error:
            decision = self._not_opened(version, incumbent, scores, "damaged", error)
        except (EngineUnavailableError, EngineFailedError) as error:
            decision = self._not_opened(version, incumbent, scores, "engine", error)
        else:
            decision = judge(weights, incumbent, engine, scores, self._settings)
            # First the ledger, then the manifest, then the swap: what serves is always on record.
            self._record(decision)
            if decision.accepted:
                self._versions.accept(weights, best=becomes_best(scores))
                self._slot.swap(Served(weights, engine))
                self._telemetry.model_version.set(version)
                self._telemetry.served_by(self._engine.name)
            else:
                engine.close()
                self._versions.refuse(version)
        self._count(decision)
        return decision

    def _not_opened(
        self, version: int, incumbent: int, scores: Scores, reason: str, error: Exception
    ) -> Decision:
        log.error("candidate does not open", extra={"version": version, "why": str(error)})
        decision = Decision(version, incumbent, False, reason, scores, self._settings.margin)
        self._record(decision)
        self._versions.refuse(version)
        return decision

    def _record(self, decision: Decision) -> None:
        record: dict[str, Any] = {"version": str(decision.version), **decision.to_json()}
        record["decided"] = stamp()
        self._store.record(LEDGER, decision.version, record).result()
        log.info("gate decision", extra=record)

    def _count(self, decision: Decision) -> None:
        body = decision.to_json()
        self._telemetry.gate_decisions.labels(body["decision"], decision.reason or "").inc()
        if decision.scores.n:
            active = "candidate_accuracy" if decision.accepted else "incumbent_accuracy"
            self._telemetry.holdout_accuracy.labels("active").set(body[active])
            self._telemetry.holdout_accuracy.labels("candidate").set(body["candidate_accuracy"])
            self._telemetry.holdout_samples.set(decision.scores.n)
