"""From candidate to serving: verify, open, judge, record, swap. Runs off the request path.

Only the last step holds the lock that all changes of what serves are made under, so that a rollback
waits neither for an engine to be built nor for the disk that the ledger is on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import TimeoutError as LateError
from concurrent.futures import wait
from typing import Any

from daemon.clock import stamp
from daemon.config import GateSettings
from daemon.errors import RequestError
from daemon.serving.gate import Decision, Effort, Scores, becomes_best, judge, refusal
from daemon.serving.opening import is_its_own
from daemon.serving.slot import ServingSlot
from daemon.serving.swaps import Swaps
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from daemon.telemetry import Telemetry
from engines import Opened, PredictEngine, Weights, WeightsError, check_health

log = logging.getLogger(__name__)

LEDGER = "decision"
NO_EFFORT = Effort()
# How long a verdict waits to be on record; then it is a refusal, which is kept for later.
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

    def consider(
        self,
        version: int,
        sha256: str,
        scores: Scores,
        effort: Effort = NO_EFFORT,
        tell: Callable[[bool], object] = lambda accepted: None,
    ) -> Decision:
        """Judge a candidate whose file is in place, and let it serve if it passes.

        The manifest is durable before the swap: after a crash the daemon starts with the version
        whose answers clients may have seen, or with one that was about to answer.

        Args:
            version: Its number.
            sha256: Its weights' digest.
            scores: What the learner found.
            effort: What it has cost.
            tell: Told the verdict, before anything that serves can change again.

        Returns:
            The decision, which is also in the ledger.
        """
        decision = self._consider(version, sha256, scores, effort, tell)
        self._count(decision)
        return decision

    def _consider(
        self,
        version: int,
        sha256: str,
        scores: Scores,
        effort: Effort,
        tell: Callable[[bool], object],
    ) -> Decision:
        incumbent = self._slot.current.weights.version

        def refused(reason: str) -> Decision:
            margin, least = self._settings.margin, self._settings.min_samples
            decision = Decision(version, incumbent, False, reason, scores, margin, effort, least)
            return self._refuse(decision, tell)

        engine: PredictEngine | None = None
        try:
            weights = self._versions.verify(version, sha256)
            if self._overtaken(weights, incumbent):
                return refused("overtaken")
            if weights.spec != self._slot.current.weights.spec:
                raise WeightsError("they are of another network")
            check_health(weights)
            engine = self._engine.open(weights)
            decision = judge(weights, incumbent, engine, scores, self._settings)
        except Exception as error:
            if engine is not None:
                engine.close()
            if not is_its_own(error):
                raise
            log.error("candidate does not open", extra={"version": version, "why": str(error)})
            return refused(refusal(error))
        decision = dataclasses.replace(decision, effort=effort)
        if decision.accepted:
            reason = self._swap_in(decision, weights, engine, tell)
            decision = dataclasses.replace(decision, accepted=reason is None, reason=reason)
        if not decision.accepted:
            engine.close()
            return self._refuse(decision, tell)
        log.info("gate decision", extra=_record(decision))
        return decision

    def _overtaken(self, weights: Weights, incumbent: int) -> bool:
        """It was compared with a version that serves no more, or has learned from what is bad."""
        now = self._swaps.manifest
        made_for = incumbent if weights.parent is None else weights.parent
        return now.retreat > 0 or not made_for == incumbent == now.active

    def _swap_in(
        self,
        decision: Decision,
        weights: Weights,
        engine: PredictEngine,
        tell: Callable[[bool], object],
    ) -> str | None:
        """Have it serve; or why not.

        First the ledger, then manifest and swap: what serves is always on record. A refusal after
        that is written over it.
        """
        try:
            kept = self._store.record(LEDGER, decision.version, _record(decision))
            kept.result(_LEDGER_SECONDS)
            with self._swaps.still():
                if self._overtaken(weights, decision.incumbent):
                    return "overtaken"
                self._swaps.accept(weights, engine, best=becomes_best(decision.scores))
                tell(True)
        except (RequestError, OSError, LateError) as error:
            log.error("candidate cannot be recorded", extra={"why": str(error)})
            return "storage"
        return None

    def _refuse(self, decision: Decision, tell: Callable[[bool], object]) -> Decision:
        """On record as soon as the store takes it; a disk that is full does not stop judging."""
        record = _record(decision)
        kept = self._store.record_when_possible(LEDGER, decision.version, record)
        wait([kept], 0 if self._store.unavailable else _LEDGER_SECONDS)
        log.info("gate decision", extra=record)
        with self._swaps.still():
            try:
                self._versions.refuse(decision.version)
            except OSError as error:
                log.error("manifest cannot be written", extra={"why": str(error)})
            tell(False)
        return decision

    def _count(self, decision: Decision) -> None:
        body = decision.to_json()
        self._telemetry.gate_decisions.labels(body["decision"], decision.reason or "").inc()
        # One that was overtaken was compared with what serves no more.
        if not decision.scores.n or decision.reason == "overtaken":
            return
        role, of = "incumbent", decision.incumbent
        if decision.accepted:
            role, of = "candidate", decision.version
        with self._swaps.still() as manifest:
            if of != manifest.active:  # since it was judged; what it came at was cleared then
                return
            self._telemetry.holdout_accuracy.labels("active").set(body[f"{role}_accuracy"])
            self._telemetry.holdout_accuracy.labels("candidate").set(body["candidate_accuracy"])
            self._telemetry.holdout_samples.set(decision.scores.n)
            self._telemetry.holdout_missing_classes.set(len(decision.scores.missing))
            self._telemetry.class_accuracy.set("holdout", decision.served_by_class())


def _record(decision: Decision) -> dict[str, Any]:
    return {"version": str(decision.version), **decision.to_json(), "decided": stamp()}
