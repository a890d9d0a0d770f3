"""A batch as a body of `POST /samples`: binary tensors where they can say it all, else NDJSON."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec
import numpy as np

from daemon.datasets import Row
from daemon.ingest.tensors import LENGTH_HEADER


def request_of(rows: Sequence[Row], ids: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request.

    Args:
        rows: At least one; their `x` has the model's shape.
        ids: Of each, in order.
    """
    # A tensor has one type, and the header one source.
    alike = len({(type(row.label), row.source) for row in rows}) == 1
    if alike and all(row.ts is None for row in rows):
        return _tensors(rows, ids)
    lines = map(_line, rows, ids)
    return b"".join(lines), {"Content-Type": "application/x-ndjson"}


def _line(row: Row, row_id: str) -> bytes:
    told = {"label": row.label, "source": row.source or None, "ts": row.ts}
    fields = {name: value for name, value in told.items() if value is not None}
    return msgspec.json.encode({"x": row.x.ravel().tolist(), "id": row_id, **fields}) + b"\n"


def _tensors(rows: Sequence[Row], ids: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    x = np.stack([row.x for row in rows]).reshape(len(rows), -1)
    small = x.dtype == np.uint8
    content = (x if small else x.astype("<f4")).tobytes()
    parts = [("x", "UINT8" if small else "FP32", [*x.shape], content)]
    labels = [row.label for row in rows]
    if all(isinstance(label, int) for label in labels):
        parts.append(("label", "INT64", [len(rows)], np.array(labels, dtype="<i8").tobytes()))
    elif labels[0] is not None:
        parts.append(("label", "BYTES", [len(rows)], _texts([str(label) for label in labels])))
    parts.append(("id", "BYTES", [len(rows)], _texts(ids)))
    head = {
        "inputs": [
            {
                "name": name,
                "shape": shape,
                "datatype": kind,
                "parameters": {"binary_data_size": len(content)},
            }
            for name, kind, shape, content in parts
        ],
        "parameters": {"source": rows[0].source} if rows[0].source else {},
    }
    text = msgspec.json.encode(head)
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join([text, *(content for *_, content in parts)]), headers


def _texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
