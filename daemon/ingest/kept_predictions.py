"""Predictions whose label may come later, in memory, the oldest making room."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from daemon.errors import UnknownIdError

KEPT_LIMIT = 10_000
KEPT_LIMIT_BYTES = 32 << 20
_ID = re.compile("p-[A-Za-z0-9_-]{16}")


def new_prediction_id() -> str:
    """An id that no other prediction has, before or after a restart, and that nobody guesses."""
    return f"p-{secrets.token_urlsafe(12)}"


class KeptPrediction(NamedTuple):
    """What was asked and answered.

    Args:
        features: Bytes, as a sample has them.
        dtype: Of these.
        label: The answer; None: no class was known.
        version: Of the weights that answered.
    """

    features: bytes
    dtype: str
    label: int | str | None
    version: int


class KeptPredictions:
    """Bounded in number and in bytes; does not outlive the process. Any thread may call it.

    Args:
        by_default: Whether a prediction is kept when the client does not say.
        limit: Most predictions.
        limit_bytes: Most bytes of features.
        stored: The features, and their dtype, of the sample that a prediction became when its label
            came: a label sent again is then seen to be one, however long ago the first was.
    """

    def __init__(
        self,
        *,
        by_default: bool,
        limit: int = KEPT_LIMIT,
        limit_bytes: int = KEPT_LIMIT_BYTES,
        stored: Callable[[str], tuple[bytes, str] | None] = lambda prediction_id: None,
    ) -> None:
        self.by_default = by_default
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._stored = stored
        self._bytes = 0
        self._kept: OrderedDict[str, KeptPrediction] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, prediction_id: str | None) -> bool:
        return prediction_id in self._kept

    def keep(self, prediction_id: str, prediction: KeptPrediction) -> None:
        """Keep one; the oldest go where there is no room."""
        with self._lock:
            self._kept[prediction_id] = prediction
            self._bytes += len(prediction.features)
            while len(self._kept) > self._limit or self._bytes > self._limit_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.features)

    def answered(self, prediction_id: str | None) -> KeptPrediction | None:
        """A prediction, while it is kept."""
        with self._lock:
            return self._kept.get(prediction_id) if prediction_id is not None else None

    def find(self, prediction_id: str) -> tuple[bytes, str]:
        """The features of a prediction, and their dtype, kept here or by the store.

        Raises:
            UnknownIdError: It is not kept, and has no label yet.
        """
        if (kept := self.answered(prediction_id)) is not None:
            return kept.features, kept.dtype
        found = self._stored(prediction_id) if _ID.fullmatch(prediction_id) else None
        if found is None:
            raise UnknownIdError(
                'no prediction with this id is kept: it was not asked with "keep": true, newer '
                f"ones took its place (at most {self._limit} and {self._limit_bytes >> 20} MiB "
                "are kept), or the daemon has restarted since; send the features with the label",
                field="inference_id",
            )
        return found
