"""How the learner keeps up with what serves: it hears each change, and its counts are passed on.

`Begin` says what serves when a learner starts; from then on, in order, it hears every change. Both
under the lock that changes are made under, so that none is missed or told twice.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from daemon.messages import Begin, Named, Passed, Probed, Retreated, Serves, Watch, Watched
from daemon.serving.manifest import Manifest, VersionEntry
from daemon.serving.probation import Paired, Trial
from daemon.serving.swaps import Swaps


class Following:
    """A learner's view of the versions.

    Args:
        swaps: Changes them.
        send: Sends the learner a message; does nothing where it is gone.
    """

    def __init__(self, swaps: Swaps, send: Callable[[msgspec.Struct], None]) -> None:
        self._swaps = swaps
        self._send = send

    def begin(self, pass_over: int | None) -> None:
        """Tell a learner that has just started, and go on telling it.

        Args:
            pass_over: The block behind this sequence number is not to be learned; None: no such.
        """
        with self._swaps.still() as manifest:
            active, best = (manifest.entry(v) for v in (manifest.active, manifest.best))
            begin = Begin(
                _named(active),
                _named(best),
                manifest.last + 1,
                manifest.retreat,
                _good(manifest),
                _newest_good(manifest),
                pass_over,
            )
            self._send(begin)
            self._swaps.follow(self)

    def end(self) -> None:
        """The learner is gone."""
        self._swaps.follow(None)

    def hear(self, report: Probed | Retreated) -> None:
        """Pass on what the learner says about versions."""
        if isinstance(report, Retreated):
            self._swaps.retreated(report.change)
            return
        counts = Paired(report.n, report.correct, report.previous_correct, report.lost)
        self._swaps.probed(report.version, counts, report.through_seq)

    def serves(self, manifest: Manifest, *, retreat: bool) -> None:
        """See `Follower`."""
        active, best = (manifest.entry(v) for v in (manifest.active, manifest.best))
        change, good = manifest.changes, _good(manifest)
        newest_good = _newest_good(manifest)
        self._send(Serves(_named(active), retreat, _named(best), change, good, newest_good))

    def passed(self, version: VersionEntry) -> None:
        """See `Follower`."""
        self._send(Passed(_named(version)))

    def watch(self, trials: list[Trial]) -> None:
        """See `Follower`."""
        watched = [
            Watched(_named(trial.entry), _named(trial.against), trial.through_seq)
            for trial in trials
            if trial.against is not None
        ]
        self._send(Watch(watched))


def _named(entry: VersionEntry) -> Named:
    return entry.version, entry.sha256


def _newest_good(manifest: Manifest) -> Named | None:
    number = max(_good(manifest), default=None)
    return None if number is None else _named(manifest.entry(number))


def _good(manifest: Manifest) -> list[int]:
    return [entry.version for entry in manifest.versions if entry.state == "good"]
