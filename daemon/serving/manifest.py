"""What versions there are and which of them serves: the manifest, and how it may change.

    pending ─► good       it has passed its probation
       ├─────► bad        it has not, three starts with it crashed, or a rollback went behind it
       └─────► replaced   another serves, and nobody looks after it any more; it may serve again

Every change gives a new manifest, which is replaced whole on disk; nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

State = Literal["pending", "good", "bad", "replaced"]
# Of a version that does not serve, least first.
_WORTH: list[State] = ["bad", "replaced", "pending", "good"]
# Starts with a pending version that may end in a crash; then the version before it serves.
MOST_ATTEMPTS = 3


class KeptTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a version's probation had come when that was last written; see `Trial`.

    `against` is the version that `n` samples up to `through_seq` were compared with, `seconds` how
    long it has served, `idle` how many candidates were accepted since the last comparison.
    """

    against: int | None
    through_seq: int
    n: int
    correct: int
    previous_correct: int
    lost: int
    seconds: float
    idle: int


class VersionEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version that is kept.

    `attempts` counts the starts with it since it last ran well for a while; `trial` is there only
    while it is pending. The defaults are for manifests of a release that knew none of them.
    """

    version: int
    sha256: str
    created: str
    parent: int | None
    last_seq: int
    state: State = "good"
    attempts: int = 0
    trial: KeptTrial | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which versions there are.

    `previous` is what a rollback goes to; `best` the one that no accepted candidate has beaten on
    the hold-out; `last` the highest number ever given to a candidate, refused ones included;
    `changes` counts rollbacks and activations; `retreat` is the number of the last rollback
    while the learner has yet to go back behind what it was about, else 0.
    """

    active: int
    previous: int | None
    best: int
    last: int
    versions: list[VersionEntry]
    changes: int = 0
    retreat: int = 0

    def find(self, version: int) -> VersionEntry | None:
        """One of `versions`, by its number."""
        return next((entry for entry in self.versions if entry.version == version), None)

    def entry(self, version: int) -> VersionEntry:
        """One of `versions`, which is there."""
        return next(entry for entry in self.versions if entry.version == version)

    def fallbacks(self, but: int | None = None) -> list[VersionEntry]:
        """What may serve in place of a version, in the order to try: the good ones, newest first.

        Args:
            but: The version; None: the active one.
        """
        but = self.active if but is None else but
        good = [e for e in self.versions if e.state == "good" and e.version != but]
        return sorted(good, key=lambda e: (e.version != self.previous, -e.version))

    def rollback_targets(self) -> list[VersionEntry]:
        """What a rollback may go to, in the order to try: earlier versions.

        The good ones and `previous`, which is good; where there is none, what was not found bad.
        """
        earlier = [e for e in self.versions if e.version < self.active]
        good = [e for e in self.fallbacks() if e in earlier or e.version == self.previous]
        unproved = [e for e in earlier if e.state in ("pending", "replaced")]
        return good or sorted(unproved, key=lambda e: -e.version)

    @property
    def retreat_seq(self) -> int:
        """Through which sample is known what a learner knows that has gone back to what serves.

        0: to no good version, so that it begins anew. Where a checkpoint is missing, it is less.
        """
        good = [e for e in self.versions if e.state == "good" and e.version <= self.active]
        return max(good, key=lambda e: e.version).last_seq if good else 0

    def accepted(
        self, entry: VersionEntry, *, best: bool, keep: int, trials: Collection[int] = ()
    ) -> Manifest:
        """A candidate serves, and begins its probation.

        Args:
            entry: The candidate's.
            best: It is also the best one from here on.
            keep: How many versions stay. The active, the previous, the best and the newest good
                one always do; of the rest first the bad ones go, then those that never passed,
                then good ones, the oldest first.
            trials: Versions whose probation goes on, and what they are compared with: these stay
                as well.
        """
        fallback = self._fallback(but=entry.version)
        entries = [e for e in self.versions if e.version != entry.version] + [entry]
        best_version = entry.version if best else self.best
        good = [e.version for e in entries if e.state == "good"]
        stay = {entry.version, fallback, best_version, max(good, default=None), *trials}
        others = [e for e in entries if e.version not in stay]
        others.sort(key=lambda e: (_WORTH.index(e.state), e.version))
        surplus = others[: max(0, len(entries) - keep)]
        after = msgspec.structs.replace(
            self,
            active=entry.version,
            previous=fallback,
            best=best_version,
            last=max(self.last, entry.version),
            versions=[e for e in entries if e not in surplus],
        )
        return after.looked_after(trials)

    def rolled_back(self, to: int) -> Manifest:
        """The active version is bad; an earlier one serves in its place, and the learner retreats.

        So is every version newer than that one: what the learner leaves out is in it.
        """
        bad = {self.active} | {e.version for e in self.versions if e.version > to}
        after = self._begun(to)
        for version in bad:
            after = after.with_state(version, "bad")
        older = [e.version for e in after.versions if e.state == "good" and e.version < to]
        return msgspec.structs.replace(
            after,
            active=to,
            previous=max(older, default=None),
            best=to if self.best in bad else self.best,
            changes=self.changes + 1,
            retreat=self.changes + 1,
        ).looked_after()

    def activated(self, version: int) -> Manifest:
        """An operator has a kept version serve; one that is not good is on probation again."""
        fallback = self._fallback(but=version)
        return msgspec.structs.replace(
            self._begun(version), active=version, previous=fallback, changes=self.changes + 1
        ).looked_after()

    def passed(self, version: int) -> Manifest:
        """A version is good; one that serves on probation has a newer one to fall back on."""
        after = self.with_state(version, "good").with_attempts(version, 0)
        if version != self.active and self.entry(self.active).state == "pending":
            newest = max(version, self.previous or version)
            after = msgspec.structs.replace(after, previous=newest)
        return after

    def retreated(self) -> Manifest:
        """The learner has gone back."""
        return msgspec.structs.replace(self, retreat=0)

    def looked_after(self, trials: Collection[int] = ()) -> Manifest:
        """Only the active version and these are pending still; others were replaced untried."""
        after = self
        for entry in self.versions:
            if entry.state == "pending" and entry.version not in (self.active, *trials):
                after = after.with_state(entry.version, "replaced")
        return after

    def with_state(self, version: int, state: State) -> Manifest:
        """One version's state changed; a probation that begins once more begins from nothing."""
        return self._with(version, state=state, trial=None)

    def with_trial(self, version: int, trial: KeptTrial) -> Manifest:
        """How far a version's probation has come."""
        return self._with(version, trial=trial)

    def with_attempts(self, version: int, attempts: int) -> Manifest:
        """One version's crashed starts counted."""
        return self._with(version, attempts=attempts)

    def failed(self, version: int) -> Manifest:
        """A version that serves no more has not passed its probation."""
        after = self.with_state(version, "bad")
        best = self.active if self.best == version else self.best
        return msgspec.structs.replace(after, best=best)

    def fallen_back(self, to: int, gone: list[VersionEntry]) -> Manifest:
        """The active version cannot be read, which says nothing about what was learned.

        Args:
            to: Serves in its place.
            gone: Versions whose files are damaged.
        """
        damaged = [entry.version for entry in gone]
        kept = [entry for entry in self.versions if entry.version not in damaged]
        good = [e.version for e in kept if e.state == "good" and e.version != to]
        # One that could not be read now may be later: better a newer one than none.
        previous = max((v for v in good if v < to), default=max(good, default=None))
        best = self.best if any(e.version == self.best for e in kept) else to
        after = msgspec.structs.replace(
            self, active=to, previous=previous, best=best, versions=kept
        )
        if after.entry(to).state != "good":
            after = after.with_state(to, "pending")
        return after.looked_after()

    def _fallback(self, *, but: int) -> int | None:
        """The version that serves now if it is good, else the newest good one."""
        if self.active != but and self.entry(self.active).state == "good":
            return self.active
        good = [e.version for e in self.versions if e.state == "good" and e.version != but]
        return max(good, default=None)

    def _begun(self, version: int) -> Manifest:
        """It is about to serve: unless it is good, its probation begins."""
        state: State = "good" if self.entry(version).state == "good" else "pending"
        return self.with_state(version, state).with_attempts(version, 0)

    def _with(self, version: int, **changes: str | int | KeptTrial | None) -> Manifest:
        versions = [
            msgspec.structs.replace(entry, **changes) if entry.version == version else entry
            for entry in self.versions
        ]
        return msgspec.structs.replace(self, versions=versions)
