"""What was refused and is there all the same: taken out before the store is open again.

A COMMIT whose fsync fails may have left whole frames in the write-ahead log. Its requests are
refused; whoever opens the database next replays the log, and finds their rows. A client that
tries again would then have its samples twice.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter

from daemon.ingest.sample import OWN_ID_PREFIX
from daemon.store.counts import Kind, write_counts
from daemon.store.schema import SUPERSEDED, UNLABELLED

log = logging.getLogger(__name__)

# A label of a sample that was there before stays: its earlier row is retired, and the same label
# again changes nothing.
_REFUSED = f"""FROM samples WHERE seq > :seq
    AND NOT EXISTS (SELECT 1 FROM samples AS earlier WHERE earlier.retired = {SUPERSEDED}
        AND earlier.id IS NOT NULL AND earlier.id = samples.id AND earlier.seq <= :seq)
    AND NOT EXISTS (SELECT 1 FROM samples AS earlier WHERE earlier.retired = {SUPERSEDED}
        AND earlier.id IS NULL AND earlier.seq <= :seq
        AND earlier.seq = CAST(substr(samples.id, {len(OWN_ID_PREFIX) + 1}) AS INTEGER)
        AND samples.id = '{OWN_ID_PREFIX}' || earlier.seq)"""  # noqa: S608 - our own text


def remove_refused(connection: sqlite3.Connection, seq: int) -> None:
    """Take out the samples above `seq`, and the keys of their requests; no `seq` is used again.

    Args:
        connection: The writer's, in no transaction.
        seq: The newest row that was acknowledged.
    """
    (last,) = connection.execute("SELECT ifnull(max(seq), 0) FROM samples").fetchone()
    if last <= seq:
        return
    place = {"seq": seq}
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.execute(
            f"""SELECT retired, ifnull(class_index, {UNLABELLED}), source, holdout, count(*)
                {_REFUSED} GROUP BY 1, 2, 3, 4""",
            place,
        )
        changes: Counter[Kind] = Counter({(w, c, s, h): -n for w, c, s, h, n in found})
        connection.execute(f"DELETE {_REFUSED}", place)
        connection.execute("DELETE FROM idempotency WHERE last_seq > ?", (seq,))
        write_counts(connection, changes)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    log.warning(
        "refused samples were in the log: taken out", extra={"rows": -sum(changes.values())}
    )
