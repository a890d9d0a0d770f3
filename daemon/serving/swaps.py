"""The one place where another version begins to serve: accepted, rolled back to, or activated.

All changes go through one lock, and each is whole before the next begins: manifest, then swap, then
word to the learner. So whoever asks meets a daemon at rest. A candidate that was made for another
version than the one that serves by then is refused (`overtaken`), and so is an operator's change
that waited while another came first.

While a version is on probation a thread looks after it: it rolls back when the engine fails, and
calls good what has served for long enough with nothing against it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from daemon.clock import stamp
from daemon.config import GateSettings
from daemon.errors import (
    NoPreviousError,
    StorageError,
    UnknownVersionError,
    VersionChangedError,
)
from daemon.serving.change import Change, Follower
from daemon.serving.manifest import Manifest, VersionEntry
from daemon.serving.probation import MOST_FAILURES, Paired, Trial
from daemon.serving.slot import Served, ServingSlot
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
    canary_agrees,
)

log = logging.getLogger(__name__)

CHANGES = "change"  # rollbacks and activations, in the store
_LEDGER_SECONDS = 1.0
_TICK_SECONDS = 1.0
# Having served for so long, a version is not what makes the daemon crash at its start.
_SETTLED_SECONDS = 60.0


class Swaps:
    """Changes what serves.

    Args:
        versions: Owns the manifest.
        slot: What answers now.
        store: Keeps the ledger.
        engine: Opens versions.
        settings: The gate's.
        telemetry: Counts.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        versions: VersionStore,
        slot: ServingSlot,
        store: SampleStore,
        engine: Opened,
        settings: GateSettings,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions = versions
        self._slot = slot
        self._store = store
        self._engine = engine
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._lock = threading.RLock()
        self._follower: Follower | None = None
        self._recorded: Future[None] | None = None  # the newest change's
        self._trials: list[Trial] = []
        self._began = clock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._look, name="probation")
        slot.on_failures = self._wake.set
        telemetry.model_version.set(slot.current.weights.version)
        if versions.crashed is not None:
            to = self.manifest.active
            self._log_change("rolled_back", versions.crashed, to, "start", "every start crashed")
        self._try(self.manifest.active)

    @property
    def manifest(self) -> Manifest:
        """As it is now."""
        return self._versions.manifest

    def start(self) -> None:
        """Begin to look after what is on probation."""
        self._thread.start()

    def stop(self) -> None:
        """End that; a start that ends so has not crashed."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            self._settle()

    @contextmanager
    def still(self) -> Iterator[Manifest]:
        """Nothing changes meanwhile, but by the caller."""
        with self._lock:
            yield self.manifest

    def follow(self, follower: Follower | None) -> None:
        """Tell a learner that has just begun from here on; None: it has ended."""
        with self._lock:
            for trial in self._trials:
                trial.learner_ended()
            self._follower = follower
            self._say_watch()

    def accept(self, weights: Weights, engine: PredictEngine, *, best: bool) -> None:
        """Let a candidate serve; the caller holds `still` and has judged it.

        Raises:
            OSError: The manifest cannot be written; nothing has changed.
        """
        # One that was replaced before it had passed goes on with its probation: otherwise none
        # would ever pass while candidates come faster than samples to prove them.
        going_on = self._trials[:1]
        try:
            self._versions.accept(weights, best=best, trials=[t.version for t in going_on])
        except OSError:
            self._telemetry.swaps.labels("failed").inc()
            raise
        self._swap(Served(weights, engine), "swapped")
        self._trials = going_on
        self._try(weights.version)

    def rollback(self, to: int | None, reason: str) -> Change:
        """An operator's rollback: the version that serves is bad.

        Args:
            to: The version to go to; None: the previous one.
            reason: For the ledger.

        Raises:
            UnknownVersionError: It is not kept.
            NoPreviousError: There is none to go to, or not by this way.
            VersionChangedError: Another version began to serve meanwhile.
            StorageError: Its file is damaged, or the engine does not open it.
        """
        with self._asked():
            active = self.manifest.active
            if to is None:
                if (to := self.manifest.previous) is None:
                    raise NoPreviousError(
                        "no earlier version that was found good is kept: GET /models lists what "
                        "is, and POST /models/{model}/activate serves any of it"
                    )
            elif self._kept(to).state == "bad" or to == active:
                raise NoPreviousError(
                    "this version serves already"
                    if to == active
                    else "this version was found bad, and a rollback goes to one that was not: "
                    "POST /models/{model}/activate serves it all the same"
                )
            served = self._opened(self._kept(to))
            return self._roll_back(served, reason, "operator")

    def activate(self, version: int, reason: str) -> Change:
        """An operator has any kept version serve; nothing is found bad by it.

        Args:
            version: Which.
            reason: For the ledger.

        Raises:
            UnknownVersionError: It is not kept.
            VersionChangedError: Another version began to serve meanwhile.
            StorageError: Its file is damaged, the engine does not open it, or the disk is full.
        """
        with self._asked():
            before = self.manifest.active
            entry = self._kept(version)
            if version == before:
                return Change(before, self.manifest.previous, 0.0)
            served = self._opened(entry)
            try:
                self._versions.change(self.manifest.activated(version))
            except OSError as error:
                raise self._failed("the manifest cannot be written") from error
            seconds = self._swap(served, "activated")
            self._trials = []
            self._log_change("activated", before, version, "operator", reason)
            self._say_serves(retreat=False)
            self._try(version)
            return Change(version, self.manifest.previous, seconds)

    def probed(self, version: int, found: Paired, through_seq: int) -> None:
        """The learner has compared a version on probation on another block."""
        with self._lock:
            trial = next((trial for trial in self._trials if trial.version == version), None)
            if trial is None:
                return
            trial.report(found, through_seq)
            outcome = trial.outcome(self._settings)
            if outcome == "good":
                self._passed(trial)
            elif outcome == "bad":
                self._bad(trial, "accuracy")

    def retreated(self, change: int) -> None:
        """The learner has gone back behind what was rolled back, and that is on its disk.

        Args:
            change: The rollback's number; an earlier one's is not enough.
        """
        with self._lock:
            if 0 < self.manifest.retreat <= change:
                self._versions.change_at_once(self.manifest.retreated())

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """A request acts on what served when it was made, or not at all."""
        active = self.manifest.active
        with self._lock:
            if self.manifest.active != active:
                raise VersionChangedError(
                    "another version began to serve while this request waited: GET /models says "
                    "which; ask again if it is still wanted"
                )
            yield
            recorded = self._recorded
        if recorded is not None:  # who asks next finds it in the ledger
            wait([recorded], 0 if self._store.unavailable else _LEDGER_SECONDS)

    def _kept(self, version: int) -> VersionEntry:
        if (entry := self.manifest.find(version)) is None:
            raise UnknownVersionError("no such version is kept; GET /models lists them")
        return entry

    def _opened(self, entry: VersionEntry) -> Served:
        """A version ready to answer as it did for the learner."""
        try:
            weights = self._versions.load(entry)
            engine = self._engine.open(weights)
        except (WeightsError, OSError, EngineUnavailableError, EngineFailedError) as error:
            log.error("version cannot serve", extra={"version": entry.version, "why": str(error)})
            raise self._failed("the version's file is damaged, or no engine opens it") from error
        if weights.spec != self._slot.current.weights.spec or not canary_agrees(weights, engine):
            engine.close()
            raise self._failed("the version is of another network, or answers differently")
        return Served(weights, engine)

    def _failed(self, why: str) -> StorageError:
        self._telemetry.swaps.labels("failed").inc()
        return StorageError(f"{why}: the version that served goes on; the log says more")

    def _roll_back(
        self, served: Served, reason: str, by: str, found: Paired | None = None
    ) -> Change:
        before, to = self.manifest.active, served.weights.version
        # Even where the disk does not take it now: what was found bad must not go on.
        self._versions.change_at_once(self.manifest.rolled_back(to))
        seconds = self._swap(served, "rolled_back")
        self._trials = []
        self._log_change("rolled_back", before, to, by, reason, found)
        self._say_serves(retreat=True)
        self._try(to)
        return Change(to, self.manifest.previous, seconds)

    def _swap(self, served: Served, result: str) -> float:
        started = time.perf_counter()
        self._slot.swap(served)
        seconds = time.perf_counter() - started
        self._began = self._clock()
        self._telemetry.swap_seconds.observe(seconds)
        self._telemetry.swaps.labels(result).inc()
        self._telemetry.model_version.set(served.weights.version)
        self._telemetry.served_by(self._engine.name)
        return seconds

    def _try(self, version: int) -> None:
        """Begin a version's probation, if it is to prove itself."""
        manifest = self.manifest
        if (entry := manifest.entry(version)).state == "pending":
            previous = manifest.previous
            against = None if previous is None else manifest.entry(previous)
            self._trials.append(Trial(entry, against))
        self._say_watch()

    def _passed(self, trial: Trial) -> None:
        self._versions.change_at_once(self.manifest.passed(trial.version))
        self._trials.remove(trial)
        log.info("version is good", extra={"version": trial.version, **asdict(trial.total)})
        if self._follower is not None:
            self._follower.passed(trial.version)
        self._say_watch()

    def _bad(self, trial: Trial, reason: str) -> None:
        """Roll back, if it still serves; a version that does not serve is not served again."""
        if trial.version != self.manifest.active:
            self._versions.change_at_once(self.manifest.failed(trial.version))
            self._trials.remove(trial)
            log.info("version is bad", extra={"version": trial.version, **asdict(trial.total)})
            self._say_watch()
            return
        for entry in self.manifest.fallbacks():
            try:
                served = self._opened(entry)
            except StorageError:
                continue
            self._roll_back(served, reason, "probation", trial.total)
            return
        log.error("no good version opens", extra={"version": trial.version})
        self._trials.remove(trial)
        self._say_watch()

    def _settle(self) -> None:
        """The present start has not crashed."""
        active = self.manifest.entry(self.manifest.active)
        if active.attempts:
            self._versions.change_at_once(self.manifest.with_attempts(active.version, 0))

    def _look(self) -> None:
        while not self._stopping:
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            with self._lock:
                self._tend()

    def _tend(self) -> None:
        self._versions.write_again()
        served = self._clock() - self._began
        if served >= _SETTLED_SECONDS:
            self._settle()
        trial = next((t for t in self._trials if t.version == self.manifest.active), None)
        if trial is None:
            return
        if self._slot.failures >= MOST_FAILURES:
            self._bad(trial, "engine")
        elif served >= self._settings.probation_seconds:
            self._passed(trial)

    def _say_serves(self, *, retreat: bool) -> None:
        if self._follower is not None:
            self._follower.serves(self.manifest, retreat=retreat)

    def _say_watch(self) -> None:
        if self._follower is not None:
            self._follower.watch(self._trials)

    def _log_change(
        self, result: str, before: int, to: int, by: str, reason: str, found: Paired | None = None
    ) -> None:
        number = self.manifest.changes
        record: dict[str, Any] = {
            "change": number,
            "result": result,
            "from": str(before),
            "to": str(to),
            "by": by,
            "reason": reason,
            "probation": None if found is None else asdict(found),
            "decided": stamp(),
        }
        log.warning("version changed", extra=record)
        self._recorded = self._store.record_when_possible(CHANGES, number, record)
