"""A batch as a body of `POST /samples`: NDJSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from daemon.datasets import Row


def request_of(rows: Sequence[Row], ids: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request.

    Args:
        rows: At least one; their `x` has the model's shape.
        ids: Of each, in order.
    """
    return b"".join(map(_line, rows, ids)), {"Content-Type": "application/x-ndjson"}


def _line(row: Row, row_id: str) -> bytes:
    told = {"label": row.label, "source": row.source or None, "ts": row.ts}
    fields = {name: value for name, value in told.items() if value is not None}
    return msgspec.json.encode({"x": row.x.ravel().tolist(), "id": row_id, **fields}) + b"\n"
