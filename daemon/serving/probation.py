"""Whether a version that serves has proved itself: predicted on samples before they are learned.

The learner predicts each new block with the version on probation and with the good version that it
would fall back on, and reports right answers, cumulatively. On each report:

    bad     it is worse by more than the margin, and a sign test over the samples that the two
            disagree on finds that at 1 %
    good    otherwise, once `probation_samples` were compared
    wait    until then

`good` is relative: of two that are wrong as often, the newer one passes. No bar is absolute: the
gate, on the hold-out, asks only that a candidate is not below those before it.

Time makes a version good as well: `probation_seconds` that it has served, summed over starts, with
nothing against it, learning paused or not, samples or none. That shows that the engine answers with
it and no start crashes; without it, what is seldom compared or cannot be would never pass.

How far it has come is in the manifest, written every ten minutes at most and at an orderly stop, so
that a board that is switched off every evening finds good versions too. After a crash it is older;
of the samples since, those are compared that the learner had not saved, and learns once more.

The test is made anew with each report. Simulated with the defaults, two to seven reports: of
versions that are no worse 0.1 to 2.3 % are called bad; of those worse by 5 points a quarter to two
thirds, by 10 points 77 to 99 %, by 20 all, most of them after the first reports. Smaller losses are
the gate's to find.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from daemon.config import GateSettings
from daemon.serving.manifest import KeptTrial, Manifest, VersionEntry

Outcome = Literal["good", "bad", "wait"]
_SIGNIFICANCE = 0.01
# Requests in a row that the engine may fail on a version; one less is bad luck.
MOST_FAILURES = 3
# Candidates accepted without a report between them: the learner cannot read one of the two.
_MOST_IDLE = 3


@dataclass(frozen=True)
class Paired:
    """Two versions' answers on the same samples.

    Args:
        n: Samples that both have predicted.
        correct: Of them, right by the version on probation.
        previous_correct: Of them, right by the one that it is compared with.
        lost: Of them, right by that one alone.
    """

    n: int = 0
    correct: int = 0
    previous_correct: int = 0
    lost: int = 0

    def __add__(self, other: Paired) -> Paired:
        return Paired(
            self.n + other.n,
            self.correct + other.correct,
            self.previous_correct + other.previous_correct,
            self.lost + other.lost,
        )

    @property
    def gained(self) -> int:
        """Samples that are right by the version on probation alone."""
        return self.correct - self.previous_correct + self.lost


@dataclass(eq=False)
class Trial:
    """One version's probation.

    Args:
        entry: On probation.
        against: Good, and predicts the same samples; None: there is none, and time alone decides.
        through_seq: Up to here samples have been compared, by whatever learner.
        found: What the learner that runs now has reported.
        earlier: What learners before it had, in earlier starts too.
        seconds: How long it has served in those.
        condemned: Why it is bad, from when that is known until something else serves.
        again_at: When to try next to have something else serve, seconds of the swaps' clock.
        tries: How often that was tried in vain.
        idle: Candidates accepted since it was last compared.
    """

    entry: VersionEntry
    against: VersionEntry | None
    through_seq: int = 0
    found: Paired = field(default_factory=Paired)
    earlier: Paired = field(default_factory=Paired)
    seconds: float = 0.0
    condemned: str | None = None
    again_at: float = 0.0
    tries: int = 0
    idle: int = 0

    @property
    def version(self) -> int:
        """Its number."""
        return self.entry.version

    @property
    def total(self) -> Paired:
        """Over all learners."""
        return self.earlier + self.found

    def to_json(self) -> dict[str, Any]:
        """As clients see it."""
        against = None if self.against is None else str(self.against.version)
        return {"version": str(self.version), "against": against, **asdict(self.total)}

    def report(self, found: Paired, through_seq: int) -> None:
        """Take the running learner's newest report."""
        self.found, self.idle = found, 0
        self.through_seq = max(self.through_seq, through_seq)

    def learner_ended(self) -> None:
        """The next one counts from nothing."""
        self.earlier, self.found = self.total, Paired()

    def goes_on(self) -> bool:
        """Whether it is worth going on with when another candidate serves: it is compared."""
        compared = self.against is not None and self.idle < _MOST_IDLE
        return compared and self.condemned is None

    def outcome(self, settings: GateSettings) -> Outcome:
        """What the comparison says so far."""
        total = self.total
        if is_worse(total, settings.margin):
            return "bad"
        return "good" if total.n >= settings.probation_samples else "wait"


def begun(entry: VersionEntry, manifest: Manifest) -> Trial:
    """A version's probation, from where the manifest has it.

    Args:
        entry: On probation.
        manifest: Says what it may be compared with.
    """
    fallbacks, kept = manifest.fallbacks(but=entry.version), entry.trial
    trial = Trial(entry, next(iter(fallbacks), None))
    if kept is None:
        return trial
    trial.seconds = kept.seconds
    # Counts beside a version that is good no more say nothing of how it does beside another.
    for against in fallbacks:
        if against.version == kept.against:
            trial.against, trial.through_seq, trial.idle = against, kept.through_seq, kept.idle
            trial.earlier = Paired(kept.n, kept.correct, kept.previous_correct, kept.lost)
    return trial


def with_trials(manifest: Manifest, trials: list[Trial], served_seconds: float) -> Manifest:
    """The manifest, with how far each trial has come.

    Args:
        manifest: Has what they are about.
        trials: All that there are.
        served_seconds: How long the active version has served in this start.
    """
    for trial in trials:
        against = None if trial.against is None else trial.against.version
        seconds = trial.seconds + (served_seconds if trial.version == manifest.active else 0.0)
        found = asdict(trial.total)
        kept = KeptTrial(against, trial.through_seq, **found, seconds=seconds, idle=trial.idle)
        manifest = manifest.with_trial(trial.version, kept)
    return manifest


def is_worse(found: Paired, margin: float) -> bool:
    """Whether the version is worse by more than the margin, and not by chance.

    Args:
        found: Both versions' answers.
        margin: Fraction of the samples.
    """
    behind = found.previous_correct - found.correct
    if behind <= margin * found.n + 1e-6:
        return False
    return sign_test(found.lost, found.gained) <= _SIGNIFICANCE


def sign_test(lost: int, gained: int) -> float:
    """How likely so many losses or more are if losing and gaining a sample are equally likely.

    p = sum over k from `lost` to n of C(n, k) / 2^n, with n = lost + gained (Dixon & Mood 1946).
    """
    n = lost + gained
    log_half = n * math.log(2)
    log_n = math.lgamma(n + 1)
    return math.fsum(
        math.exp(log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half)
        for k in range(lost, n + 1)
    )
