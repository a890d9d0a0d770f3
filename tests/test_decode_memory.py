"""A body is refused by what it says of its length, before anything is built for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest

from daemon.errors import BadFieldError, BadShapeError, RequestError, TooLargeError
from daemon.ingest.encoding import JSON, MESSAGE_PACK
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import decode_lines, decode_objects, decode_predict_objects
from models import ModelSpec

FLAT = ModelSpec("mlp", (64,), 10, (16,))
SQUARE = ModelSpec("mlp", (8, 8), 10, (16,))
KEPT = KeptPredictions(by_default=False)
COUNT = 1 << 20


def packed(count: int, element: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + element * count


def samples(spec: ModelSpec, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as refused:
        decode_objects(body, spec, KEPT, MESSAGE_PACK)
    return refused.value


def inputs(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as refused:
        decode_predict_objects(body, FLAT, MESSAGE_PACK)
    return refused.value


def line(body: bytes) -> RequestError:
    (entry,) = decode_lines(body, FLAT, KEPT).entries
    assert isinstance(entry, RequestError)
    return entry


def lines(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as refused:
        decode_lines(body, FLAT, KEPT)
    return refused.value


X, SAMPLES, INPUTS = b"\x81\xa1x", b"\x81\xa7samples", b"\x81\xa6inputs"
TENSOR = b"\x83\xa5shape\x91\x40\xa8datatype\xa4FP32\xa4data\x90"
Refuse = Callable[[bytes], RequestError]
CASES: dict[str, tuple[Refuse, bytes, type[RequestError]]] = {
    "numbers": (partial(samples, FLAT), X + packed(COUNT, b"\x01"), BadShapeError),
    "rows": (partial(samples, SQUARE), X + packed(COUNT >> 1, b"\x91\x01"), BadShapeError),
    "a row": (
        partial(samples, SQUARE),
        X + b"\x98" + packed(COUNT, b"\x01") + b"\x91\x01" * 7,
        BadShapeError,
    ),
    "samples": (partial(samples, FLAT), SAMPLES + packed(COUNT, b"\x80"), TooLargeError),
    "inputs": (inputs, SAMPLES + packed(COUNT, b"\x80"), TooLargeError),
    "tensors": (inputs, INPUTS + packed(COUNT >> 4, TENSOR), BadFieldError),
    "a line": (line, b'{"x":[' + b"0," * COUNT + b"0]}", BadShapeError),
    "lines": (lines, b"\n" * COUNT, TooLargeError),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_too_long_is_not_built(case: str) -> None:
    refused, body, kind = CASES[case]
    tracemalloc.start()
    try:
        assert type(refused(body)) is kind
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A part of the body may be copied once or twice; what it would become takes 8 times as much.
    assert peak < 3 * len(body)


@pytest.mark.parametrize("spaces", [b"", b" " * 5000])
def test_spaces_between_numbers_are_no_numbers(spaces: bytes) -> None:
    body = b'{"x":[' + (b"," + spaces).join([b"1"] * 64) + b"]}"
    assert decode_predict_objects(body, FLAT, JSON).x.shape == (1, 64)
