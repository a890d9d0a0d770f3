"""What goes when there is too much: the oldest first, a few hundred rows a transaction.

    rows    more than `max_samples` that count, or of one class more than `max_class_samples`
    retired more than `max_samples` that no longer count: only of these the oldest
    age     more than `max_age_seconds` of service ago: no jump of a clock makes anything old
    bytes   more than 80 % of `max_bytes`; beyond 95 % no sample is taken
    disk    a full disk makes what is used then the quota: its oldest rows make room for new ones

With `when_full = "refuse"` neither bytes nor a full disk makes rows go: no sample is taken then.

The file does not shrink: pages that rows have left are the next rows'. Retired rows go in their
turn, and a request's key once no row is left that is as old as its own.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from daemon.store.availability import Cause
from daemon.store.counts import Kind
from daemon.store.removals import Removals
from daemon.store.revisions import own_seq
from daemon.store.row_check import is_page_damage
from daemon.store.sample_rows import SampleRows
from daemon.store.schema import LIVE, SUPERSEDED, UNLABELLED

log = logging.getLogger(__name__)

STEP_ROWS = 1024
_STEP_BYTES = 2 << 20
_ROWS_GO, _INGEST_STOPS = 0.80, 0.95
_LEAST_BYTES = 16 << 20
# While samples come in, limits are looked at after so many, and may be passed by as many.
_BETWEEN_ROWS = 256
_COLUMNS = "seq, id, retired, class_index, source, holdout, stored_at, length(features)"


@dataclass(frozen=True)
class Limits:
    """How much is kept; 0: without limit.

    Args:
        max_samples: Samples that count; and as many rows that no longer do.
        max_bytes: Of the database.
        max_age_seconds: Of service, since a row was stored.
        max_class_samples: Samples of one class that count.
        when_full: At `max_bytes`, or on a full disk: the oldest rows go, or no sample is taken.
    """

    max_samples: int = 0
    max_bytes: int = 0
    max_age_seconds: float = 0.0
    max_class_samples: int = 0
    when_full: Literal["remove", "refuse"] = "remove"


NO_LIMITS = Limits()


class _Row(NamedTuple):
    seq: int
    id: str | None
    retired: int
    class_index: int | None
    source: str
    holdout: int
    stored_at: int
    size: int


class Retention:
    """Keeps the rows within their limits; in the writer's thread.

    Args:
        limits: What is kept.
        rows: Counts what goes.
    """

    def __init__(self, limits: Limits, rows: SampleRows) -> None:
        self._limits = limits
        self._rows = rows
        self._disk_bytes: int | None = None  # used when the disk was full
        self._looked_at_seq = -_BETWEEN_ROWS
        self._off = False
        self.refuses: Cause | None = None  # why no sample is taken
        self.learned_seq = 0  # the learner has met all up to here
        self.removals = Removals()
        self._unlearned = 0  # in the step that is not committed yet

    def reason(self, connection: sqlite3.Connection, *, idle: bool, disk_full: bool) -> str | None:
        """Why rows have to go now; None: none has to.

        Args:
            connection: The writer's.
            idle: Nothing waits to be written: limits are met to the row.
            disk_full: The disk gives no more room.
        """
        seq = self._rows.counts.last_seq
        if not idle and seq - self._looked_at_seq < _BETWEEN_ROWS:
            return None
        self._looked_at_seq = seq
        slack = 0 if idle else _BETWEEN_ROWS
        used = self._share_used(connection, disk_full)
        over: Cause = "full" if disk_full else "quota"
        keeps = self._limits.when_full == "refuse"
        self.refuses = over if used > _INGEST_STOPS or (keeps and disk_full) else None
        if self._off:
            return None
        try:
            return self._limit_passed(connection, used, slack)
        except sqlite3.DatabaseError as error:
            if not is_page_damage(error):
                raise
            self._set_off()
            return None

    def _limit_passed(self, connection: sqlite3.Connection, used: float, slack: int) -> str | None:
        limits = self._limits
        if used > _ROWS_GO and limits.when_full == "remove":
            return "bytes"
        counts = self._rows.counts
        if limits.max_samples and counts.samples > limits.max_samples + slack:
            return "rows"
        if limits.max_samples and sum(counts.retired.values()) > limits.max_samples + slack:
            return "retired"
        if limits.max_age_seconds and self._oldest_age(connection) > limits.max_age_seconds:
            return "age"
        most = limits.max_class_samples
        return "class" if most and _largest_class_above(connection, most + slack) else None

    def step(self, connection: sqlite3.Connection, reason: str) -> int:
        """Remove some rows, in a transaction.

        Args:
            connection: The writer's.
            reason: As `reason` gave it.

        Returns:
            How many.

        Raises:
            RuntimeError: A damaged page is in the way; it is not tried again.
        """
        self._looked_at_seq = -_BETWEEN_ROWS  # there may be more
        try:
            rows = self._remove(connection, reason)
        except sqlite3.DatabaseError as error:
            if not is_page_damage(error):
                raise
            self._set_off()
            # SQLite commits nothing after this; nor is it a kind that closes the database.
            raise RuntimeError("a damaged page keeps old rows from going") from error
        self._unlearned = sum(row.seq > self.learned_seq for row in rows if _is_to_learn(row))
        for kind, number in Counter(map(_kind, rows)).items():
            self._rows.count(kind, -number)
        return len(rows)

    def _remove(self, connection: sqlite3.Connection, reason: str) -> list[_Row]:
        rows = (
            self._of_a_class(connection) if reason == "class" else self._oldest(connection, reason)
        )
        try:
            _delete(connection, rows)
        except sqlite3.DatabaseError as error:
            # A bit that flipped in a row's columns: the indexes do not have the row that there is.
            if not is_page_damage(error):
                raise
            log.error("old rows are damaged and cannot be removed: indexes are made anew")
            connection.execute("REINDEX samples")
            _delete(connection, rows)
        _delete_keys(connection)
        return rows

    def _set_off(self) -> None:
        log.error("a damaged page: no more rows go until the database is mended")
        self._off = True

    def removed(self, reason: str, rows: int) -> None:
        """The rows of the newest step are gone for good.

        Args:
            reason: As the step was given it.
            rows: As it gave.
        """
        self.removals.note(reason, rows, self._unlearned)

    def _share_used(self, connection: sqlite3.Connection, disk_full: bool) -> float:
        """How much of the quota; a full disk makes what is used at that time the quota."""
        used = _used_bytes(connection)
        if not disk_full:
            self._disk_bytes = None
        elif self._disk_bytes is None:
            # Of a small database the rows are a small part: it must not lose them all.
            self._disk_bytes = max(used, _LEAST_BYTES)
        quotas = [quota for quota in (self._limits.max_bytes, self._disk_bytes) if quota]
        return used / min(quotas) if quotas else 0.0

    def _oldest(self, connection: sqlite3.Connection, reason: str) -> list[_Row]:
        most, oldest_kept = STEP_ROWS, None
        counts, where = self._rows.counts, ""
        if reason == "rows":
            most = min(most, counts.samples - self._limits.max_samples)
        elif reason == "retired":
            most = min(most, sum(counts.retired.values()) - self._limits.max_samples)
            where = f"WHERE retired <> {LIVE}"
        elif reason == "age":
            oldest_kept = self._rows.service_seconds - self._limits.max_age_seconds
        query = f"SELECT {_COLUMNS} FROM samples {where} ORDER BY seq LIMIT {most}"  # noqa: S608 - numbers
        rows: list[_Row] = []
        size = 0
        for found in connection.execute(query):
            row = _Row(*found)
            if size >= _STEP_BYTES or (oldest_kept is not None and row.stored_at >= oldest_kept):
                break
            rows.append(row)
            size += row.size
        return rows

    def _of_a_class(self, connection: sqlite3.Connection) -> list[_Row]:
        limit = self._limits.max_class_samples
        found = _largest_class_above(connection, limit)
        if found is None:
            return []
        class_index, samples = found
        query = f"""SELECT {_COLUMNS} FROM samples WHERE retired = {LIVE} AND class_index = ?
            ORDER BY seq LIMIT ?"""  # noqa: S608 - our own text
        most = min(STEP_ROWS, samples - limit)
        rows = [_Row(*row) for row in connection.execute(query, (class_index, most))]
        earlier: list[_Row] = []
        for row in rows:
            if row.id is not None:  # it may have been labelled later: what it was before goes too
                earlier += _superseded(connection, row.id)
        return [*earlier, *rows]

    def _oldest_age(self, connection: sqlite3.Connection) -> float:
        row = connection.execute("SELECT stored_at FROM samples ORDER BY seq LIMIT 1").fetchone()
        return 0.0 if row is None else self._rows.service_seconds - row[0]


def _kind(row: _Row) -> Kind:
    place = UNLABELLED if row.class_index is None else row.class_index
    return row.retired, place, row.source, row.holdout


def _is_to_learn(row: _Row) -> bool:
    return row.retired == LIVE and row.class_index is not None and not row.holdout


def _superseded(connection: sqlite3.Connection, sample_id: str) -> list[_Row]:
    """The rows that a sample had before its label came or was corrected."""
    retired = f"SELECT {_COLUMNS} FROM samples WHERE retired = {SUPERSEDED}"  # noqa: S608 - numbers
    found = connection.execute(f"{retired} AND id = ?", (sample_id,)).fetchall()
    if (first := own_seq(sample_id)) is not None:
        found += connection.execute(f"{retired} AND seq = ? AND id IS NULL", (first,)).fetchall()
    return [_Row(*row) for row in found]


def _delete(connection: sqlite3.Connection, rows: list[_Row]) -> None:
    seqs = [(row.seq,) for row in rows]
    connection.executemany("DELETE FROM samples WHERE seq = ?", seqs)


def _delete_keys(connection: sqlite3.Connection) -> None:
    """Those of requests whose rows have all gone; where none is left, all."""
    connection.execute(
        """DELETE FROM idempotency
            WHERE last_seq < (SELECT ifnull(min(seq), 9223372036854775807) FROM samples)"""
    )


def _largest_class_above(connection: sqlite3.Connection, limit: int) -> tuple[int, int] | None:
    row: tuple[int, int] | None = connection.execute(
        f"""SELECT class_index, sum(samples) AS all_samples FROM counts
            WHERE retired = {LIVE} AND class_index <> {UNLABELLED}
            GROUP BY class_index HAVING all_samples > ? ORDER BY all_samples DESC LIMIT 1""",  # noqa: S608 - our own numbers
        (limit,),
    ).fetchone()
    return row


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)
