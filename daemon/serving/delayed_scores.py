"""Predictions scored when their label comes: each once, as it was answered, for its version.

A sample of the stream is scored by the learner just before it is learned, by whatever the learner
is by then. A prediction was answered by a version that serves, and what that said stays said. It is
the first label that counts: a correction is learned, and scored as any sample is, but what has been
said of a version on the word of the first is not taken back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from daemon.telemetry import Telemetry

DELAYED = "delayed"  # their records in the store
VERSIONS_KEPT = 100
_RECENT = 500


class DelayedScores:
    """Counts by version, kept in the store; any thread may call it.

    Args:
        telemetry: Shows them.
        record: Keeps a version's counts as a record, soon.
        past: Records of earlier runs.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        record: Callable[[int, dict[str, Any]], Future[None]],
        past: Iterable[dict[str, Any]],
    ) -> None:
        self._telemetry = telemetry
        self._record = record
        self._counts = {int(of["version"]): (of["right"], of["wrong"]) for of in past}
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._unrecorded: set[int] = set()
        self._recording: Future[None] | None = None
        self._lock = threading.Lock()

    def add(self, version: int, *, right: bool) -> None:
        """Count a prediction whose label has come, and is durable.

        Args:
            version: That answered.
            right: Whether it had answered what the label says.
        """
        with self._lock:
            were_right, were_wrong = self._counts.pop(version, (0, 0))
            self._counts[version] = (were_right + right, were_wrong + (not right))
            while len(self._counts) > VERSIONS_KEPT:
                del self._counts[min(self._counts)]
            self._recent.append(right)
            accuracy = sum(self._recent) / len(self._recent)
            self._unrecorded.add(version)
        self._telemetry.delayed_labels.labels("right" if right else "wrong").inc()
        self._telemetry.delayed_accuracy.set(accuracy)

    def of(self, version: int) -> dict[str, int]:
        """How many predictions of a version were right and wrong, of those whose label came."""
        right, wrong = self._counts.get(version, (0, 0))
        return {"right": right, "wrong": wrong}

    def save(self, *, last: bool = False) -> None:
        """Record what is not recorded yet, unless the record before still waits to be written.

        Args:
            last: Record it even then: nothing comes after.
        """
        with self._lock:
            waits = self._recording is not None and not self._recording.done()
            if waits and not last:
                return
            for version in self._unrecorded & self._counts.keys():
                body = {"version": str(version), **self.of(version)}
                self._recording = self._record(version, body)
            self._unrecorded.clear()
