"""The check of a row: a CRC-32 over every column but `retired`, made anew by whoever reads it.

SQLite by itself finds 1 to 3 % of flipped bits in a row (measured); this finds all that lie in one
run of 32 bits, and of others all but one in four thousand million.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

import msgspec

# In this order a row is checked, and so selected by whoever reads it.
CHECKED = "seq, id, class_index, holdout, dtype, source, ts, stored_at, digest, features"

_pack = msgspec.msgpack.Encoder().encode


def row_crc(
    seq: int,
    id: str | None,
    class_index: int | None,
    holdout: int,
    dtype: str,
    source: str,
    ts: str | None,
    stored_at: int,
    digest: int | None,
    features: bytes | memoryview,
) -> int:
    """CRC-32 of a row, of its columns in the order of `CHECKED`.

    MessagePack writes each value with its type and length, so that no two rows pack to the same
    bytes; the features come last and as they are, which spares a copy.
    """
    head = (seq, id, class_index, holdout, dtype, source, ts, stored_at, digest)
    return zlib.crc32(features, zlib.crc32(_pack(head)))


def is_sound(row: tuple[Any, ...]) -> bool:
    """Whether a row as read, `CHECKED` and then `crc`, is the row that was written."""
    *columns, crc = row
    try:
        return bool(row_crc(*columns) == crc)
    except (TypeError, OverflowError):  # a damaged header gives a column another type
        return False


def is_page_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite found a page, or an index, that is not as it was written."""
    return "malformed" in str(error)
