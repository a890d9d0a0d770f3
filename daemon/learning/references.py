"""The versions that candidates are compared with: what serves, the best so far, the newest good.

The newest good one is among them because it need not be the best: where the hold-out has moved on
since, a candidate that is near the other two can lie further below the one that a rollback goes to.
"""

from __future__ import annotations

import logging

from daemon.messages import Begin, Named, Passed, Serves
from daemon.serving.gate import Scores, becomes_best
from daemon.serving.versions import VersionStore
from engines import Weights, WeightsError

log = logging.getLogger(__name__)


class References:
    """Their weights, as the server says which they are.

    Args:
        versions: Where they are read.

    Attributes:
        incumbent: Serves.
    """

    incumbent: Weights

    def __init__(self, versions: VersionStore) -> None:
        self._versions = versions
        self._best: Weights | None = None
        self._good: Weights | None = None

    @property
    def others(self) -> list[Weights]:
        """The best so far and the newest good, as far as they can be read; else the incumbent."""
        found = [weights for weights in (self._best, self._good) if weights is not None]
        return found or [self.incumbent]

    def follow(self, word: Begin | Serves) -> None:
        """Another version serves, or is the best.

        Raises:
            WeightsError: What serves is damaged.
            OSError: It cannot be read.
        """
        self.incumbent = self._versions.verify(*word.active)
        self._best = self._read(word.best)
        self._good = None if word.newest_good is None else self._read(word.newest_good)

    def passed(self, word: Passed) -> None:
        """A version is good from here on; a newer one may be so already."""
        if self._good is None or self._good.version < word.version[0]:
            self._good = self._read(word.version)

    def accepted(self, candidate: Weights, scores: Scores) -> None:
        """A candidate serves from here on."""
        self.incumbent = candidate
        if becomes_best(scores):
            self._best = candidate

    def _read(self, version: Named) -> Weights | None:
        try:
            return self._versions.verify(*version)
        except (WeightsError, OSError) as error:
            extra = {"version": version[0], "why": str(error)}
            log.error("a version cannot be read to compare candidates with", extra=extra)
            return None
