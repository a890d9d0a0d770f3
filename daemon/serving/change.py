"""A change of what serves: what it was, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from daemon.serving.manifest import Manifest
from daemon.serving.probation import Trial


class Follower(Protocol):
    """The learner's end: told of each change, in order, while no other can happen."""

    def serves(self, manifest: Manifest, *, retreat: bool) -> None:
        """Another version serves that is no new candidate."""

    def passed(self, version: int) -> None:
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
    """

    active: int
    previous: int | None
    swap_seconds: float
