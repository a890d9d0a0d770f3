"""What was acknowledged, written outside of what is broken, and the audit against it.

A line of the ledger is one sample: its id, the CRC-32 of its content and its place in the order,
where the answer told it. It is written and synced after the 2xx came, never before. Every sample
that a harness sends carries a number of its own in its first eight features, so that one that was
stored twice shows, whatever ids it was given.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from daemon.store.schema import DATABASE_NAME

FEATURES = 64
CLASSES = 4

Entries = dict[str, tuple[int, int | None]]


def features_of(number: int) -> bytes:
    """Features of the harness's sample of that number; no two are equal."""
    head = number.to_bytes(8, "big")
    body = (head + zlib.crc32(head).to_bytes(4, "big")) * 5
    return head + body[: FEATURES - len(head)]


def label_of(number: int) -> int:
    return zlib.crc32(number.to_bytes(8, "big")) % CLASSES


def content_crc(features: bytes, label: object) -> int:
    return zlib.crc32(features + str(label).encode())


def number_of(features: bytes) -> int:
    return int.from_bytes(features[:8], "big")


class Ledger:
    """Appends what was acknowledged, from any thread or process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._shut = threading.Lock(), False
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def acknowledged(
        self, ids: Sequence[str], numbers: Sequence[int], first_seq: int | None = None
    ) -> bool:
        """Called after the acknowledgement of one request; on return it is on disk.

        Returns:
            Whether it counts: not while the ledger is shut.
        """
        lines = [
            [id_, content_crc(features_of(n), label_of(n)), first_seq and first_seq + place]
            for place, (id_, n) in enumerate(zip(ids, numbers, strict=True))
        ]
        with self._lock:
            if self._shut:
                return False
            os.write(self._file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        os.fsync(self._file)
        return True

    def shut(self, *, on: bool) -> None:
        """From here on nothing counts, or does again.

        A machine without power tells nobody anything. One whose file system is shut down goes on
        for a moment, and Linux lets a sync that overlaps the shutdown succeed without its data
        (measured with pwrite and fdatasync alone: in 10 of 150 shutdowns).
        """
        with self._lock:
            self._shut = on

    def entries(self) -> Entries:
        """CRC and place of every acknowledged sample by its id."""
        lines = map(json.loads, self.path.read_text().splitlines())
        return {id_: (crc, seq) for id_, crc, seq in lines}

    def __len__(self) -> int:
        return self.path.read_bytes().count(b"\n")

    def close(self) -> None:
        os.close(self._file)


@dataclass
class Audit:
    """What became of the acknowledged samples.

    Args:
        acknowledged: How many there were.
        stored: Rows that count.
        lost, altered: Ids that were acknowledged and are not there, or not as they were sent.
        twice: Numbers of samples that lie there more than once.
    """

    acknowledged: int
    stored: int
    lost: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    integrity: str = "ok"

    def broken(self) -> list[str]:
        """The promises that were not kept, in words; empty when all were."""
        found = {
            f"{len(self.lost)} of {self.acknowledged} acknowledged samples are lost": self.lost,
            f"{len(self.altered)} acknowledged samples are altered": self.altered,
            f"{len(self.twice)} samples are stored twice": self.twice,
            f"integrity_check: {self.integrity}": self.integrity != "ok",
        }
        return [text for text, bad in found.items() if bad]


def audit(
    directory: Path, acknowledged: Entries, *, damage: bool = False, oldest_may_go: bool = False
) -> Audit:
    """Compare the store in `directory` with a ledger.

    Args:
        directory: The store's, nobody writing to it.
        acknowledged: A ledger's entries.
        damage: The files were damaged on purpose: then SQLite's own check says nothing.
        oldest_may_go: Retention was at work: nothing is lost that came before all that is there.
    """
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.row_factory = sqlite3.Row
        check = "ok" if damage else connection.execute("PRAGMA integrity_check").fetchone()[0]
        # Cut before its first transaction a database has no tables; then nothing was acknowledged.
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'samples'").fetchone()
        query = "SELECT * FROM samples LEFT JOIN classes USING (class_index)"
        rows = connection.execute(query) if made else []
        found = [
            (row["seq"], row["id"] or f"s-{row['seq']}", bytes(row["features"]), row["name"])
            for row in rows
            if "retired" not in row.keys() or not row["retired"]  # noqa: SIM118 - not a dict
        ]
    crcs = {id_: content_crc(features, label) for _, id_, features, label in found}
    times = Counter(number_of(features) for _, _, features, _ in found)
    lowest = min((seq for seq, *_ in found), default=0) if oldest_may_go else 0
    return Audit(
        acknowledged=len(acknowledged),
        stored=len(found),
        lost=[
            id_
            for id_, (_, seq) in acknowledged.items()
            if id_ not in crcs and (seq is None or seq > lowest)
        ],
        altered=[id_ for id_, (crc, _) in acknowledged.items() if crcs.get(id_, crc) != crc],
        twice=[number for number, count in times.items() if count > 1],
        integrity=check,
    )
