"""What the store holds, for people and tools: pages of samples, and counts by label and source.

Read past the writer, on a connection of each call's own.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from daemon.errors import StorageError
from daemon.store.connections import open_reader
from daemon.store.row_check import CHECKED, is_sound
from daemon.store.sample_rows import CURRENT
from daemon.store.schema import LIVE, RETIRED_NAMES, UNLABELLED

# Bytes of features in one page; JSON writes a number in up to twenty.
PAGE_BYTES = 1 << 20
_SOURCES_SHOWN = 1000

_PLAIN = """SELECT seq, ifnull(id, 's-' || seq), class_index, source, ts FROM samples
    WHERE retired = 0 AND seq > ?"""
_WHOLE = f"""SELECT ifnull(id, 's-' || seq), {CHECKED}, crc FROM samples
    WHERE retired = 0 AND seq > ?"""  # noqa: S608 - our own text


def list_samples(
    path: Path,
    *,
    label: str | None,
    source: str | None,
    after_seq: int,
    limit: int,
    features: bool,
) -> dict[str, Any]:
    """One page of the samples that count, in order of arrival.

    Args:
        path: The database.
        label: Only those with this label; `null`: only those without one; None: all.
        source: Only those from there; None: all.
        after_seq: Only later ones.
        limit: Most samples in the page; with features it may end earlier.
        features: With their features, and without the samples that are damaged.

    Returns:
        `samples`, and `next_after_seq` to ask for the next page with.
    """
    where = ""
    values: list[int | str] = [after_seq]
    found: list[dict[str, Any]] = []
    with closing(open_reader(path)) as connection:
        rows = connection.execute("SELECT class_index, name, is_integer FROM classes")
        labels = {index: int(name) if number else name for index, name, number in rows}
        if label == "null":
            where += " AND class_index IS NULL"
        elif label is not None:
            places = [index for index, known in labels.items() if str(known) == label]
            where += " AND class_index = ?"
            values += places or [UNLABELLED]  # which no row has: an empty page
        if source is not None:
            # Where a label chooses the index, `+` keeps the source from choosing another.
            where += " AND source = ?" if label is None else " AND +source = ?"
            values.append(source)
        query = (_WHOLE if features else _PLAIN) + where + " ORDER BY seq LIMIT ?"
        size, last = 0, after_seq
        for row in connection.execute(query, (*values, limit)):
            if features:
                sample_id, *columns = row
                seq, _, place, _, dtype, origin, ts, *_, x, _ = columns
                last = seq
                if not is_sound(tuple(columns)):
                    continue
            else:
                seq, sample_id, place, origin, ts = row
                last = seq
            entry = {"id": sample_id, "seq": seq, "label": labels.get(place)}
            entry |= {"source": origin, "ts": ts}
            if features:
                kind = "<f4" if dtype == "float32" else np.uint8
                entry |= {"dtype": dtype, "x": np.frombuffer(x, kind).tolist()}
                size += len(x)
            found.append(entry)
            if size >= PAGE_BYTES:
                break
    return {"samples": found, "next_after_seq": last}


def find_features(path: Path, sample_id: str) -> tuple[bytes, str] | None:
    """The features and the dtype of the sample with an id that a client chose.

    Args:
        path: The database.
        sample_id: Its id.

    Returns:
        None where there is none that counts, or it is damaged.

    Raises:
        StorageError: The database cannot be read.
    """
    query = f"SELECT {CHECKED}, crc FROM samples WHERE id = ? AND {CURRENT} AND retired = {LIVE}"  # noqa: S608 - our own text
    try:
        with closing(open_reader(path)) as connection:
            row = connection.execute(query, (sample_id,)).fetchone()
    except sqlite3.Error as error:
        raise StorageError("the samples cannot be read now: try again") from error
    if row is None or not is_sound(row):
        return None
    *_, dtype, _, _, _, _, features, _ = row
    return features, dtype


def count_samples(path: Path) -> dict[str, Any]:
    """How many there are, by label and by source, and how many rows no longer count, by why.

    `last_seq` is the highest place in the order of arrival that a row has ever had.
    """
    with closing(open_reader(path)) as connection:
        (last_seq,) = connection.execute("SELECT last_seq FROM store_state").fetchone()
        by_label = connection.execute(
            """SELECT name, is_integer, sum(samples), sum(samples * holdout)
                FROM counts LEFT JOIN classes USING (class_index)
                WHERE retired = ? GROUP BY class_index ORDER BY class_index""",
            (LIVE,),
        ).fetchall()
        by_source = connection.execute(
            """SELECT source, sum(samples) FROM counts WHERE retired = ?
                GROUP BY source ORDER BY 2 DESC, 1 LIMIT ?""",
            (LIVE, _SOURCES_SHOWN),
        ).fetchall()
        retired = dict(
            connection.execute(
                "SELECT retired, sum(samples) FROM counts WHERE retired != ? GROUP BY 1", (LIVE,)
            ).fetchall()
        )
    labels = [
        {"label": int(name) if number else name, "samples": samples, "holdout": holdout}
        for name, number, samples, holdout in by_label
    ]
    return {
        "samples": sum(entry["samples"] for entry in labels),
        "last_seq": last_seq,
        "labels": labels,
        "sources": [{"source": source, "samples": samples} for source, samples in by_source],
        "retired": {name: retired.get(why, 0) for why, name in RETIRED_NAMES.items()},
    }
