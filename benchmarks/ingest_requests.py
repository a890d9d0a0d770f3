"""The requests that `benchmarks.ingest` posts, as bytes made beforehand.

Values are whole numbers of 0 to 255, as a camera's; labels are 0 to 9; no sample names an id.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_Pixels = NDArray[np.uint8]
_Labels = NDArray[np.int64]
# Different ones, so that no cache of the daemon's sees the same bytes all the time.
_SINGLES = 512
_BATCHES = 16


def make_requests(form: str, batch: int, features: int, host: str, seed: int) -> list[bytes]:
    """Whole HTTP requests to `POST /samples`.

    Args:
        form: One of `FORMS`.
        batch: Samples in each.
        features: Values a sample.
        host: For the header.
        seed: Of the values.
    """
    random = np.random.default_rng(seed)
    made: list[bytes] = []
    for _ in range(_SINGLES if batch == 1 else _BATCHES):
        pixels = random.integers(0, 256, (batch, features), dtype=np.uint8)
        body, headers = FORMS[form](pixels, random.integers(0, 10, batch))
        made.append(_request("/samples", host, headers, body))
    return made


def make_predictions(form: str, batch: int, features: int, host: str, seed: int) -> list[bytes]:
    """Whole HTTP requests to `POST /predict`, one sample each; arguments as `make_requests`."""
    if (form, batch) != ("json", 1):
        raise ValueError(f"predictions are asked one by one in JSON, not {batch} in {form}")
    random = np.random.default_rng(seed)
    made: list[bytes] = []
    for _ in range(_SINGLES):
        pixels = random.integers(0, 256, features, dtype=np.uint8)
        body = f'{{"x":[{",".join(map(str, pixels.tolist()))}]}}'.encode()
        made.append(_request("/predict", host, "Content-Type: application/json\r\n", body))
    return made


def _request(path: str, host: str, headers: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode() + body


def _sample(pixels: _Pixels, label: int) -> str:
    x = ",".join(map(str, pixels.tolist()))
    return f'{{"x":[{x}],"label":{label},"source":"bench"}}'


def _json(pixels: _Pixels, labels: _Labels) -> tuple[bytes, str]:
    samples = [_sample(row, label) for row, label in zip(pixels, labels.tolist(), strict=True)]
    body = samples[0] if len(samples) == 1 else f'{{"samples":[{",".join(samples)}]}}'
    return body.encode(), "Content-Type: application/json\r\n"


def _lines(pixels: _Pixels, labels: _Labels) -> tuple[bytes, str]:
    samples = [_sample(row, label) for row, label in zip(pixels, labels.tolist(), strict=True)]
    return "\n".join(samples).encode(), "Content-Type: application/x-ndjson\r\n"


def _binary(pixels: _Pixels, labels: _Labels) -> tuple[bytes, str]:
    parts = {"x": ("UINT8", pixels), "label": ("INT64", labels.astype("<i8"))}
    inputs = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": datatype,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, (datatype, values) in parts.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"source": "bench"}}).encode()
    body = head + b"".join(values.tobytes() for _, values in parts.values())
    return body, (
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n"
    )


FORMS: dict[str, Callable[[_Pixels, _Labels], tuple[bytes, str]]] = {
    "json": _json,
    "ndjson": _lines,
    "binary": _binary,
}
