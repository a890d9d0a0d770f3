"""The learner's view of the samples: a read-only connection of its own, every read short.

A reader that holds a transaction open keeps the writer from checkpointing its log, so each method
fetches what it returns and lets go.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.ingest.sample import unpack_features
from daemon.store.schema import DATABASE_NAME, open_reader
from engines import Label
from models import ModelSpec


@dataclass(frozen=True)
class StoredSample:
    """One sample as it lies in the database.

    Args:
        seq: Order of arrival.
        class_index: Its class place.
        dtype: `uint8` or `float32`.
        features: Bytes in that dtype.
    """

    seq: int
    class_index: int
    dtype: str
    features: bytes


class SampleReader:
    """Reads what the store's writer has committed.

    Args:
        directory: The store's.
        spec: The model whose shape the features have.
    """

    def __init__(self, directory: Path, spec: ModelSpec) -> None:
        self._spec = spec
        self._connection = open_reader(directory / DATABASE_NAME)

    def training(self, after_seq: int, limit: int) -> list[StoredSample]:
        """The oldest samples after `after_seq` that may be learned from, in order of arrival."""
        return self._samples("holdout = 0 AND seq > ? ORDER BY seq LIMIT ?", after_seq, limit)

    def training_before(self, seq: int, limit: int) -> list[StoredSample]:
        """The newest samples up to and with `seq` that may be learned from, in order of arrival."""
        newest = self._samples("holdout = 0 AND seq <= ? ORDER BY seq DESC LIMIT ?", seq, limit)
        return newest[::-1]

    def holdout(self, limit: int) -> list[StoredSample]:
        """The newest samples that only score, in order of arrival."""
        return self._samples("holdout = 1 AND seq > ? ORDER BY seq DESC LIMIT ?", 0, limit)[::-1]

    def backlog(self, after_seq: int) -> int:
        """How many samples after `after_seq` may be learned from."""
        query = "SELECT count(*) FROM samples WHERE holdout = 0 AND seq > ?"
        (count,) = self._connection.execute(query, (after_seq,)).fetchone()
        return int(count)

    def last_seq(self) -> int:
        """Sequence number of the newest sample; 0 when there is none."""
        (seq,) = self._connection.execute("SELECT ifnull(max(seq), 0) FROM samples").fetchone()
        return int(seq)

    def labels(self) -> tuple[Label, ...]:
        """Label of each class place in use."""
        rows = self._connection.execute(
            "SELECT name, is_integer FROM classes ORDER BY class_index"
        ).fetchall()
        return tuple(int(name) if is_integer else name for name, is_integer in rows)

    def batch(self, samples: list[StoredSample]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features float32 `[batch, *input_shape]` and class places int64 `[batch]`."""
        rows = [unpack_features(s.features, s.dtype, self._spec) for s in samples]
        return np.stack(rows), np.array([s.class_index for s in samples], dtype=np.int64)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _samples(self, where: str, *values: int) -> list[StoredSample]:
        query = f"SELECT seq, class_index, dtype, features FROM samples WHERE {where}"  # noqa: S608
        return [StoredSample(*row) for row in self._connection.execute(query, values)]
