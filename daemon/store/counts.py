"""How much there is, by what it is: a table kept in the transactions that change it.

So no start counts a million rows, and no page of a dashboard does.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass, replace

from daemon.store.schema import LIVE, UNLABELLED

# What a row counts as: why it is retired, class place, source, and 1 where it only ever scores.
Kind = tuple[int, int, str, int]


@dataclass(frozen=True)
class StoreCounts:
    """How much the store holds.

    Args:
        samples: All that count, with or without a label.
        holdout: Of them, with a label, those that only ever score.
        unlabelled: Of them, those without a label.
        retired: Rows that no longer count, by why: relabelled, withdrawn or damaged.
        last_seq: Sequence number of the newest; 0 when there never was one.
    """

    samples: int
    holdout: int
    unlabelled: int
    retired: dict[int, int]
    last_seq: int

    @property
    def to_learn(self) -> int:
        """Samples that may be learned from."""
        return self.samples - self.holdout - self.unlabelled


def stored_last_seq(connection: sqlite3.Connection) -> int:
    """Where the order of arrival stands, as the tables have it."""
    row = connection.execute("SELECT last_seq FROM store_state").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("no such row: store_state is empty")
    return int(row[0])


def load_counts(connection: sqlite3.Connection) -> StoreCounts:
    """As the tables have them."""
    last_seq = stored_last_seq(connection)
    rows = connection.execute("SELECT retired, class_index, source, holdout, samples FROM counts")
    changes: Counter[Kind] = Counter(
        {(retired, place, source, holdout): n for retired, place, source, holdout, n in rows}
    )
    return counted(StoreCounts(0, 0, 0, {}, last_seq), changes, last_seq)


def counted(counts: StoreCounts, changes: Counter[Kind], last_seq: int) -> StoreCounts:
    """`counts` after `changes`."""
    samples, holdout, unlabelled = counts.samples, counts.holdout, counts.unlabelled
    retired = Counter(counts.retired)
    for (why, class_index, _, only_scores), change in changes.items():
        if why != LIVE:
            retired[why] += change
        else:
            samples += change
            if class_index == UNLABELLED:
                unlabelled += change
            else:
                holdout += change * only_scores
    return replace(
        counts,
        samples=samples,
        holdout=holdout,
        unlabelled=unlabelled,
        retired=dict(retired),
        last_seq=last_seq,
    )


def write_counts(connection: sqlite3.Connection, changes: Counter[Kind]) -> None:
    """Put changes into the table; what there is none of any more leaves it."""
    connection.executemany(
        """INSERT INTO counts VALUES (?, ?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET samples = samples + excluded.samples""",
        [(*kind, change) for kind, change in changes.items() if change],
    )
    connection.executemany(
        """DELETE FROM counts WHERE samples <= 0
            AND retired = ? AND class_index = ? AND source = ? AND holdout = ?""",
        [kind for kind, change in changes.items() if change < 0],
    )
