"""The one place where another version begins to serve: accepted, rolled back to, or activated.

All changes go through one lock, and each is whole before the next begins: manifest, then swap, then
word to the learner. So whoever asks meets a daemon at rest. What takes long is done before, out
of the lock: to read, check and open a version, so that no rollback waits for that. A candidate that
was made for another version than the one that serves by then is refused (`overtaken`), and so is an
operator's change where another came first.

While a version is on probation a thread looks after it: it rolls back when the engine fails, and
calls good what has served for long enough with nothing against it, and writes now and then how far
probation has come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from daemon.config import GateSettings
from daemon.errors import RequestError, StorageError, VersionChangedError
from daemon.serving.change import Change, ChangeLedger, Follower
from daemon.serving.manifest import Manifest, VersionEntry
from daemon.serving.opening import open_version
from daemon.serving.probation import MOST_FAILURES, Paired, Trial, begun, with_trials
from daemon.serving.slot import Served, ServingSlot
from daemon.serving.targets import kept_version, rollback_target
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from daemon.telemetry import Telemetry
from engines import Opened, PredictEngine, Weights

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
# Having lived for so long, or given an answer, a version is not what makes every start crash.
_SETTLED_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 60.0  # between tries to have something else serve
# How much of a probation a crash may cost; each writing costs the disk.
_KEEP_SECONDS = 600.0


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
        self._engine = engine
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._lock = threading.RLock()
        self._follower: Follower | None = None
        self._ledger = ChangeLedger(store)
        self._trials: list[Trial] = []
        self._began = self._kept_at = clock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._look, name="probation")
        slot.on_news = self._wake.set
        telemetry.model_version.set(slot.current.weights.version)
        if versions.crashed is not None:
            self._record("rolled_back", versions.crashed, "start", "every start crashed")
        for entry in self.manifest.versions:
            self._try(entry.version)

    @property
    def manifest(self) -> Manifest:
        """As it is now."""
        return self._versions.manifest

    @property
    def probation(self) -> list[dict[str, Any]]:
        """What is on probation, and how far it is, as clients see it."""
        wanted = {"samples": self._settings.probation_samples}
        return [trial.to_json() | wanted for trial in [*self._trials]]

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
            self._keep()

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
            if self._trials:
                self._say_watch()

    def accept(self, weights: Weights, engine: PredictEngine, *, best: bool) -> None:
        """Let a candidate serve; the caller holds `still` and has judged it.

        Raises:
            OSError: The manifest cannot be written; nothing has changed.
        """
        # One that was replaced before it had passed goes on with its probation: otherwise none
        # would ever pass while candidates come faster than samples to prove them.
        going_on = [trial for trial in self._trials if trial.goes_on()][:1]
        stay = {trial.version for trial in going_on}
        stay |= {trial.against.version for trial in going_on if trial.against is not None}
        bad = [trial.version for trial in self._trials if trial.condemned is not None]
        try:
            self._versions.accept(weights, best=best, trials=stay, bad=bad)
        except OSError:
            self._telemetry.swaps.labels("failed").inc()
            raise
        self._swap(Served(weights, engine), "swapped")
        self._trials = going_on
        for trial in going_on:
            trial.idle += 1
        self._try(weights.version)
        if bad:
            self._say_serves(retreat=False)  # for the best may have been among them

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
        active = self.manifest.active
        served = self._open(rollback_target(self.manifest, to))
        with self._asked(active, served):
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
        before = self.manifest.active
        entry = kept_version(self.manifest, version)
        if version == before:
            return Change(before, self.manifest.previous, 0.0, self._versions.durable)
        served = self._open(entry)
        with self._asked(before, served):
            try:
                self._versions.change(self.manifest.activated(version))
            except OSError as error:
                raise self._failed(error) from error
            seconds = self._swap(served, "activated")
            self._trials = []
            self._record("activated", before, "operator", reason)
            self._say_serves(retreat=False)
            self._try(version)
            return Change(version, self.manifest.previous, seconds, self._versions.durable)

    def probed(self, version: int, found: Paired, through_seq: int) -> None:
        """The learner has compared a version on probation on another block."""
        with self._lock:
            trial = next((trial for trial in self._trials if trial.version == version), None)
            if trial is None:
                return
            trial.report(found, through_seq)
            outcome = "bad" if trial.condemned else trial.outcome(self._settings)
            if outcome == "good":
                self._passed(trial)
        if outcome == "bad":
            self._condemn(trial, "accuracy")

    def retreated(self, change: int) -> None:
        """The learner has gone back behind what was rolled back, and that is on its disk.

        Args:
            change: The rollback's number; an earlier one's is not enough.
        """
        with self._lock:
            if 0 < self.manifest.retreat <= change:
                self._versions.change_at_once(self.manifest.retreated())

    @contextmanager
    def _asked(self, active: int, served: Served) -> Iterator[None]:
        """A request acts on what served when it was made, and what was kept, or not at all."""
        try:
            with self._lock:
                kept = self.manifest.find(served.weights.version)
                if self.manifest.active != active or kept is None:
                    raise VersionChangedError(
                        "another version began to serve while this request waited: GET /models "
                        "says which; ask again if it is still wanted"
                    )
                yield
        except RequestError:
            served.engine.close()
            raise
        self._ledger.settle()

    def _open(self, entry: VersionEntry) -> Served:
        spec = self._slot.current.weights.spec
        try:
            return open_version(self._versions, entry, self._engine, spec)
        except StorageError:
            self._telemetry.swaps.labels("failed").inc()
            raise

    def _failed(self, error: OSError) -> StorageError:
        self._telemetry.swaps.labels("failed").inc()
        log.error("manifest cannot be written", extra={"why": str(error)})
        return StorageError(
            "the manifest cannot be written: the version that served goes on; the log says more"
        )

    def _roll_back(
        self, served: Served, reason: str, by: str, found: Paired | None = None
    ) -> Change:
        before, to = self.manifest.active, served.weights.version
        # Even where the disk does not take it now: what was found bad must not go on.
        self._versions.change_at_once(self.manifest.rolled_back(to))
        seconds = self._swap(served, "rolled_back")
        self._trials = []
        self._record("rolled_back", before, by, reason, found)
        self._say_serves(retreat=True)
        self._try(to)
        return Change(to, self.manifest.previous, seconds, self._versions.durable)

    def _swap(self, served: Served, result: str) -> float:
        started = time.perf_counter()
        self._slot.swap(served)
        seconds = time.perf_counter() - started
        self._began = self._clock()
        version, engine = served.weights.version, self._engine.name
        self._telemetry.swapped(version, engine, result, seconds)
        return seconds

    def _try(self, version: int) -> None:
        """Begin a version's probation or go on with it, if it is to prove itself."""
        if (entry := self.manifest.entry(version)).state == "pending":
            self._trials.append(begun(entry, self.manifest))
        self._say_watch()

    def _passed(self, trial: Trial) -> None:
        self._versions.change_at_once(self.manifest.passed(trial.version))
        self._trials.remove(trial)
        log.info("version is good", extra={"version": trial.version, **asdict(trial.total)})
        if self._follower is not None:
            self._follower.passed(trial.entry)
        self._say_watch()

    def _condemn(self, trial: Trial, reason: str) -> None:
        """Have another version serve; the caller holds no lock, for that one is opened first.

        Where none opens, it is tried again: what cannot be read or has no room now may later.
        """
        with self._lock:
            trial.condemned = trial.condemned or reason
            if not self._serves_on(trial) or self._clock() < trial.again_at:
                return
            trial.tries += 1
            wait_seconds = min(2.0 ** (trial.tries - 1), _LONGEST_WAIT_SECONDS)
            trial.again_at = self._clock() + wait_seconds
            fallbacks = self.manifest.fallbacks()
        for entry in fallbacks:
            try:
                served = self._open(entry)
            except StorageError:
                continue
            with self._lock:
                kept = self.manifest.find(entry.version)
                if self._serves_on(trial) and kept is not None and kept.state == "good":
                    self._roll_back(served, trial.condemned, "probation", trial.total)
                    return
            served.engine.close()
            return
        extra = {"version": trial.version, "again_in_seconds": wait_seconds}
        log.error("no good version opens", extra=extra)

    def _serves_on(self, trial: Trial) -> bool:
        """Whether a condemned version still serves; one that does not is bad, and that is all."""
        if trial not in self._trials:
            return False
        if trial.version == self.manifest.active:
            return True
        best = self.manifest.best
        self._versions.change_at_once(self.manifest.failed(trial.version))
        self._trials.remove(trial)
        log.info("version is bad", extra={"version": trial.version, **asdict(trial.total)})
        if self.manifest.best != best:
            self._say_serves(retreat=False)
        self._say_watch()
        return False

    def _keep(self) -> None:
        """Write how far probation has come."""
        self._kept_at = self._clock()
        after = with_trials(self.manifest, self._trials, self._kept_at - self._began)
        if after != self.manifest:
            self._versions.change_at_once(after)

    def _settle(self) -> None:
        """The present start has not crashed."""
        active = self.manifest.entry(self.manifest.active)
        if active.attempts:
            self._versions.change_at_once(self.manifest.with_attempts(active.version, 0))

    def _look(self) -> None:
        while not self._stopping:
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            try:
                self._tend()
            except Exception:  # nobody else looks after what is on probation
                log.exception("looking after what is on probation failed; it is tried again")

    def _tend(self) -> None:
        with self._lock:
            self._versions.write_again()
            served = self._clock() - self._began
            if served >= _SETTLED_SECONDS or self._slot.has_answered:
                self._settle()
            if self._clock() - self._kept_at >= _KEEP_SECONDS:
                self._keep()
            trial = next((t for t in self._trials if t.version == self.manifest.active), None)
            if trial is None:
                return
            failed = self._slot.failures >= MOST_FAILURES
            # That it is worse may have been found by an earlier start, which could not replace it.
            if not trial.condemned and not failed and trial.outcome(self._settings) != "bad":
                if trial.seconds + served >= self._settings.probation_seconds:
                    self._passed(trial)
                return
        self._condemn(trial, "engine" if failed else "accuracy")

    def _say_serves(self, *, retreat: bool) -> None:
        if self._follower is not None:
            self._follower.serves(self.manifest, retreat=retreat)

    def _say_watch(self) -> None:
        if self._follower is not None:
            self._follower.watch(self._trials)

    def _record(
        self, result: str, before: int, by: str, reason: str, found: Paired | None = None
    ) -> None:
        now = self.manifest
        self._ledger.add(now.changes, result, (before, now.active), by, reason, found)
