"""The same samples in every form that `POST /samples` reads, as a client would write them."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

BOUNDARY = "between-parts"
DATATYPES = {"uint8": "UINT8", "int8": "INT8", "float32": "FP32", "float64": "FP64"}


@dataclass(frozen=True)
class Sent:
    """A request: its body, what its headers say, and its URL's parameters."""

    body: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)

    @property
    def all_headers(self) -> dict[str, str]:
        return {"Content-Type": self.media_type} | self.headers


@dataclass(frozen=True)
class Given:
    """Samples as a client has them.

    Args:
        x: `[samples, *shape]`.
        labels: One for each.
        ids: One for each.
        source: Of all.
    """

    x: NDArray[Any]
    labels: list[int] | list[str]
    ids: list[str]
    source: str

    def objects(self, features: Callable[[NDArray[Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            features(x) | {"label": label, "id": own_id}
            for x, label, own_id in zip(self.x, self.labels, self.ids, strict=True)
        ]


def numbers(x: NDArray[Any]) -> dict[str, Any]:
    return {"x": x.tolist()}


def flat_numbers(x: NDArray[Any]) -> dict[str, Any]:
    return {"x": x.ravel().tolist()}


def base64_bytes(x: NDArray[Any]) -> dict[str, Any]:
    text = base64.b64encode(x.tobytes()).decode()
    return {"x_b64": text, "dtype": x.dtype.name, "shape": [*x.shape]}


def raw_bytes(x: NDArray[Any]) -> dict[str, Any]:
    return {"x": x.tobytes(), "dtype": x.dtype.name, "shape": [*x.shape]}


def infer_input(x: NDArray[Any]) -> dict[str, Any]:
    kind = DATATYPES[x.dtype.name]
    data = x.ravel().tolist()
    return {"inputs": [{"name": "x", "shape": [1, *x.shape], "datatype": kind, "data": data}]}


def json_batch(given: Given, features: Callable[..., dict[str, Any]] = numbers) -> Sent:
    body = {"samples": given.objects(features), "source": given.source}
    return Sent(json.dumps(body).encode(), "application/json")


def json_one(given: Given, features: Callable[..., dict[str, Any]] = numbers) -> Sent:
    (one,) = given.objects(features)
    return Sent(json.dumps(one | {"source": given.source}).encode(), "application/json")


def lines(given: Given) -> Sent:
    objects = [one | {"source": given.source} for one in given.objects(flat_numbers)]
    return Sent("\n".join(map(json.dumps, objects)).encode(), "application/x-ndjson")


def message_pack(given: Given, features: Callable[..., dict[str, Any]] = numbers) -> Sent:
    body = {"samples": given.objects(features), "source": given.source}
    return Sent(msgspec.msgpack.encode(body), "application/msgpack")


def byte_strings(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def tensor(name: str, shape: list[int], datatype: str, raw: bytes) -> tuple[dict[str, Any], bytes]:
    size = {"binary_data_size": len(raw)}
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": size}, raw


def binary(parts: list[tuple[dict[str, Any], bytes]], parameters: dict[str, Any]) -> Sent:
    header = json.dumps({"inputs": [part for part, _ in parts], "parameters": parameters}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    body = header + b"".join(raw for _, raw in parts)
    return Sent(body, "application/octet-stream", length)


def tensors(given: Given) -> Sent:
    x = given.x
    count = len(x)
    if isinstance(given.labels[0], int):
        label = tensor("label", [count], "INT64", np.array(given.labels, "<i8").tobytes())
    else:
        label = tensor("label", [count], "BYTES", byte_strings(given.labels))  # type: ignore[arg-type]
    parts = [
        tensor("x", [*x.shape], DATATYPES[x.dtype.name], x.tobytes()),
        label,
        tensor("id", [count], "BYTES", byte_strings(given.ids)),
    ]
    return binary(parts, {"source": given.source})


def png(x: NDArray[Any]) -> bytes:
    """`[1 or 3, height, width]` uint8 as a PNG file."""
    pixels = x[0] if len(x) == 1 else x.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def form(fields: list[tuple[str, bytes]]) -> Sent:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (b'; filename="a.png"\r\nContent-Type: image/png' if name == "image" else b"")
        + b"\r\n\r\n"
        + content
        + b"\r\n"
        for name, content in fields
    )
    body += f"--{BOUNDARY}--\r\n".encode()
    return Sent(body, f"multipart/form-data; boundary={BOUNDARY}")


def picture_form(given: Given) -> Sent:
    fields = [("source", given.source.encode())]
    for x, label, own_id in zip(given.x, given.labels, given.ids, strict=True):
        fields += [("image", png(x)), ("label", str(label).encode()), ("id", own_id.encode())]
    return form(fields)


def picture(given: Given) -> Sent:
    query = {"label": str(given.labels[0]), "id": given.ids[0], "source": given.source}
    return Sent(png(given.x[0]), "image/png", query=query)
