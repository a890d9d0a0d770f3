"""The learner's view of the samples: a read-only connection of its own, every read short.

A reader that holds a transaction open keeps the writer from checkpointing its log, so each method
fetches what it returns and lets go. A row that is not as it was written is passed over.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.ingest.sample import unpack_features
from daemon.store.connections import open_reader
from daemon.store.row_check import CHECKED, is_page_damage, is_sound
from daemon.store.schema import DATABASE_NAME
from engines import Label
from models import ModelSpec

log = logging.getLogger(__name__)

# A million would take a tenth of a second, and the learner asks after each block.
BACKLOG_COUNTED = 100_000
_COUNTS = "retired = 0 AND class_index IS NOT NULL"
_TO_LEARN = f"holdout = 0 AND {_COUNTS}"
# As the index of the hold-out has it.
_TO_SCORE = "holdout = 1 AND retired = 0"


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
        on_damage: Called with the `seq` of each row whose check failed, once.
    """

    def __init__(
        self,
        directory: Path,
        spec: ModelSpec,
        on_damage: Callable[[int], None] = lambda seq: None,
    ) -> None:
        self._spec = spec
        self._on_damage = on_damage
        self._damaged: set[int] = set()
        self._connection = open_reader(directory / DATABASE_NAME)

    def training(self, after_seq: int, limit: int) -> tuple[list[StoredSample], int]:
        """The oldest samples after `after_seq` that may be learned from, in order of arrival.

        Returns:
            As many as there are, at most `limit`; and the `seq` up to which rows were looked at:
            damaged ones are passed for good.
        """
        found: list[StoredSample] = []
        through = after_seq
        while len(found) < limit:
            wanted = limit - len(found)
            seqs = self._seqs(f"{_TO_LEARN} AND seq > ? ORDER BY seq LIMIT ?", through, wanted)
            if not seqs:
                break
            found += self.samples(seqs)
            through = seqs[-1]
        return found, through

    def trained_before(self, seq: int, limit: int) -> list[StoredSample]:
        """The newest samples before `seq` that may be learned from, in order of arrival."""
        where = f"{_TO_LEARN} AND seq < ? ORDER BY seq DESC LIMIT ?"
        return self.samples(self._seqs(where, seq, limit)[::-1])

    def departures(self) -> int:
        """How many rows have ceased to count since the store was made, in whichever way.

        Every row came at the end of the order, and what counts is counted, in one transaction.
        """
        query = """SELECT last_seq -
            (SELECT ifnull(sum(samples), 0) FROM counts WHERE retired = 0) FROM store_state"""
        (departures,) = self._connection.execute(query).fetchone()
        return int(departures)

    def departed(self, seqs: list[int]) -> list[int]:
        """Those of these samples that may no longer be learned from; from an index alone."""
        query = f"""SELECT value FROM json_each(?) WHERE NOT EXISTS (
            SELECT 1 FROM samples INDEXED BY samples_to_learn WHERE {_TO_LEARN} AND seq = value
        )"""  # noqa: S608 - our own text
        rows = self._connection.execute(query, (msgspec.json.encode(seqs).decode(),))
        return [seq for (seq,) in rows]

    def samples(self, seqs: list[int]) -> list[StoredSample]:
        """The samples with these numbers, in their order; none for one that is damaged or gone.

        Gone is also what a correction or a withdrawal has emptied.
        """
        query = f"SELECT {CHECKED}, crc FROM samples WHERE seq = ?"  # noqa: S608 - our own text
        found = []
        unreadable = 0
        for seq in seqs:
            try:
                row = self._connection.execute(query, (seq,)).fetchone()
            except sqlite3.DatabaseError as error:
                if not is_page_damage(error):
                    raise
                # Told here alone: the writer could not retire it either.
                unreadable += self._pass_over(seq)
                continue
            if row is None:
                continue
            if not is_sound(row):
                if self._pass_over(seq):
                    self._on_damage(seq)
                continue
            _, _, class_index, _, dtype, *_, features, _ = row
            if not features:  # superseded or withdrawn since its number was read
                continue
            found.append(StoredSample(seq, class_index, dtype, features))
        if unreadable:
            log.error("damaged pages: samples are passed over", extra={"samples": unreadable})
        return found

    def holdout_count(self, class_index: int, after_seq: int, limit: int) -> int:
        """How many samples of a class after `after_seq` only score; counted up to `limit`."""
        return self._count(
            f"{_TO_SCORE} AND class_index = ? AND seq > ?", class_index, after_seq, limit
        )

    def holdout_seqs(self, class_index: int, after_seq: int, limit: int) -> list[int]:
        """Which the newest samples of a class after `after_seq` are that only score, newest first.

        From an index alone, as their count: asked for every class before each decision.
        """
        where = f"{_TO_SCORE} AND class_index = ? AND seq > ? ORDER BY seq DESC LIMIT ?"
        return self._seqs(where, class_index, after_seq, limit)

    def backlog(self, after_seq: int) -> int:
        """How many samples after `after_seq` may be learned from; counted up to 100,000."""
        return self._count(f"{_TO_LEARN} AND seq > ?", after_seq, BACKLOG_COUNTED)

    def last_seq(self) -> int:
        """Sequence number of the newest sample; 0 when there never was one."""
        (seq,) = self._connection.execute("SELECT last_seq FROM store_state").fetchone()
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

    def _pass_over(self, seq: int) -> bool:
        """Whether it is for the first time."""
        if seq in self._damaged:
            return False
        self._damaged.add(seq)
        return True

    def _seqs(self, where: str, *values: int) -> list[int]:
        query = f"SELECT seq FROM samples WHERE {where}"  # noqa: S608 - our own text
        return [found for (found,) in self._connection.execute(query, values)]

    def _count(self, where: str, *values: int) -> int:
        """The last value is how far to count."""
        rows = f"SELECT 1 FROM samples WHERE {where} LIMIT ?"  # noqa: S608 - our own text
        query = f"SELECT count(*) FROM ({rows})"  # noqa: S608
        (count,) = self._connection.execute(query, values).fetchone()
        return int(count)
