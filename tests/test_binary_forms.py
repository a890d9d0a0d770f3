"""MessagePack, tensors and forms: what is wrong is refused by name, and only what is wrong."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest

from daemon.errors import RequestError
from daemon.ingest.encoding import JSON, MESSAGE_PACK
from daemon.ingest.form_data import decode_form, decode_picture
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import decode_objects
from daemon.ingest.sample import Sample
from daemon.ingest.tensors import decode_predict_tensors, decode_tensors
from models import ModelSpec
from tests.sample_forms import BOUNDARY, Sent, binary, byte_strings, form, png, tensor

FLAT = ModelSpec("mlp", (4,), 3, (8,))
IMAGE = ModelSpec("mlp", (1, 2, 2), 3, (8,))
KEPT = KeptPredictions(by_default=False)
MARK = "EvilMark"
X = bytes([1, 2, 3, 4, 5, 6, 7, 8])
GOOD = tensor("x", [2, 4], "UINT8", X)


def two(values: list[int], code: str = "<i8", kind: str = "INT64") -> tuple[dict[str, Any], bytes]:
    return tensor("label", [2], kind, np.array(values, code).tobytes())


def tensors(sent: Sent, spec: ModelSpec = FLAT) -> list[Any]:
    length = sent.headers["Inference-Header-Content-Length"]
    return decode_tensors(sent.body, length, spec).entries


def refused(call, status: int, code: str, field: str | None = None) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    error = caught.value
    assert (error.status, error.code, error.field) == (status, code, field), str(error)
    assert MARK not in json.dumps(error.body())


def test_tensors_share_the_bodys_memory() -> None:
    sent = binary([GOOD, two([3, 1])], {"source": "cam0"})
    first, second = tensors(sent)
    assert first == Sample(X[:4], "uint8", 3, None, "cam0", None)
    assert second == Sample(X[4:], "uint8", 1, None, "cam0", None)
    body = np.frombuffer(sent.body, np.uint8)
    assert np.shares_memory(np.frombuffer(second.features, np.uint8), body)


def test_labels_may_be_absent_small_or_text() -> None:
    assert [s.label for s in tensors(binary([GOOD], {}))] == [None, None]
    assert [s.label for s in tensors(binary([GOOD, two([7, 8], "u1", "UINT8")], {}))] == [7, 8]
    text = tensor("label", [2, 1], "BYTES", byte_strings(["7", "größer"]))
    assert [s.label for s in tensors(binary([text, GOOD], {}))] == ["7", "größer"]


def test_one_bad_row_spoils_no_other() -> None:
    x = np.arange(16, dtype="<f4").reshape(4, 4)
    x[1, 2] = np.nan
    labels = np.array([1, 2, 2**62 + 1, 3], "<i8").tobytes()
    ids = tensor("id", [4], "BYTES", byte_strings(["a", "b", "c", "s-1"]))
    parts = [tensor("x", [4, 4], "FP32", x.tobytes()), tensor("label", [4], "INT64", labels), ids]
    first, *bad = tensors(binary(parts, {}))
    assert first == Sample(bytes([0, 1, 2, 3]), "uint8", 1, "a", "", None)
    assert [(e.code, e.field) for e in bad] == [
        ("not_finite", "x"),
        ("bad_field", "label"),
        ("bad_field", "id"),
    ]


def test_a_double_too_large_for_float32_is_refused() -> None:
    x = np.array([[1, 2, 3, 1e300], [1, 2, 3, 4]], "<f8")
    first, second = tensors(binary([tensor("x", [2, 4], "FP64", x.tobytes())], {}))
    assert (first.code, second.features) == ("not_finite", bytes([1, 2, 3, 4]))


def sized(part: tuple[dict[str, Any], bytes], size: int) -> tuple[dict[str, Any], bytes]:
    return part[0] | {"parameters": {"binary_data_size": size}}, part[1]


SIZES, SHAPE, KIND = "bad_binary", "inputs[0].shape", "inputs[0].datatype"
BAD_TENSORS = {
    "one byte more is claimed": ([sized(GOOD, 9)], SIZES, None),
    "one byte less is claimed": ([sized(GOOD, 7)], SIZES, None),
    "two gigabytes are claimed": ([sized(GOOD, 2**31)], SIZES, None),
    "more than any size": ([sized(GOOD, 2**40)], "bad_field", "inputs[0].parameters."),
    "less than none": ([sized(GOOD, -8)], "bad_field", "inputs[0].parameters."),
    "no size": ([(GOOD[0] | {"parameters": {}}, X)], "bad_field", "inputs[0].parameters."),
    "a shape of more rows": ([tensor("x", [3, 4], "UINT8", X)], SIZES, "inputs[0]"),
    "a shape of endless rows": ([tensor("x", [2**31, 4], "UINT8", X)], "too_large", None),
    "no rows": ([tensor("x", [0, 4], "UINT8", b"")], "bad_field", "samples"),
    "no batch axis": ([tensor("x", [8], "UINT8", X)], "bad_shape", SHAPE),
    "no axis": ([tensor("x", [], "UINT8", X)], "bad_shape", SHAPE),
    "another shape": ([tensor("x", [4, 2], "UINT8", X)], "bad_shape", SHAPE),
    "five axes": ([tensor("x", [1, 1, 1, 2, 4], "UINT8", X)], "bad_field", "inputs[0].shape"),
    "an unknown type": ([tensor("x", [2, 4], MARK, X)], "bad_field", KIND),
    "text as features": ([tensor("x", [2, 4], "BYTES", X)], "bad_field", KIND),
    "another name": ([tensor(MARK, [2, 4], "UINT8", X)], "bad_field", "inputs[0].name"),
    "x twice": ([GOOD, GOOD], "bad_field", "inputs[1].name"),
    "no x": ([two([1, 2])], "bad_field", "inputs"),
    "no tensor": ([], "bad_field", "inputs"),
    "labels of real numbers": (
        [GOOD, two([1, 2], "<f4", "FP32")],
        "bad_field",
        "inputs[1].datatype",
    ),
    "ids of numbers": (
        [GOOD, tensor("id", [2], "INT64", bytes(16))],
        "bad_field",
        "inputs[1].datatype",
    ),
    "a label too few": (
        [GOOD, tensor("label", [1], "INT64", bytes(8))],
        "bad_field",
        "inputs[1].shape",
    ),
    "label bytes too few": ([GOOD, tensor("label", [2], "INT64", bytes(8))], SIZES, "inputs[1]"),
    "text beyond the end": (
        [GOOD, tensor("label", [2], "BYTES", struct.pack("<I", 2**32 - 1))],
        SIZES,
        "inputs[1]",
    ),
    "text too short": ([GOOD, tensor("label", [2], "BYTES", b"\x01")], SIZES, "inputs[1]"),
    "a text too many": (
        [GOOD, tensor("label", [2], "BYTES", byte_strings(["a", "b", "c"]))],
        SIZES,
        "inputs[1]",
    ),
    "text that is none": (
        [GOOD, tensor("label", [2], "BYTES", b"\x01\0\0\0\xff\x01\0\0\0a")],
        SIZES,
        "inputs[1]",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_wrong_tensors_are_refused(case: str) -> None:
    parts, code, field = BAD_TENSORS[case]
    sent = binary(parts, {})
    with pytest.raises(RequestError) as caught:
        tensors(sent)
    assert caught.value.code == code, str(caught.value)
    if field is not None or code == SIZES:
        assert (caught.value.field or "").startswith(field or "")
    assert MARK not in json.dumps(caught.value.body())


def test_the_header_of_a_binary_body_must_be_right() -> None:
    body = binary([GOOD], {}).body
    for length in (None, "", "0", "-1", "1e2", "٣", "9" * 30, str(len(body) + 1), " 1"):
        refused(lambda length=length: decode_tensors(body, length, FLAT), 400, "bad_header")
    refused(lambda: decode_tensors(body, "10", FLAT), 400, "bad_json")
    refused(lambda: tensors(binary([GOOD], {MARK: 1})), 422, "bad_field", "parameters")
    refused(lambda: tensors(binary([GOOD], {"source": " "})), 422, "bad_field", "parameters.source")
    refused(
        lambda: tensors(binary([GOOD], {"source": True})), 422, "bad_field", "parameters.source"
    )


def test_257_rows_are_too_many() -> None:
    rows = lambda n: binary([tensor("x", [n, 4], "UINT8", bytes(4 * n))], {})  # noqa: E731
    assert len(tensors(rows(256))) == 256
    refused(lambda: tensors(rows(257)), 413, "too_large")


def test_predict_refuses_what_is_not_finite() -> None:
    x = np.array([[1, 2, np.inf, 4]], "<f4").tobytes()
    sent = binary([tensor("x", [1, 4], "FP32", x)], {"keep": True})
    length = sent.headers["Inference-Header-Content-Length"]
    refused(lambda: decode_predict_tensors(sent.body, length, FLAT), 422, "not_finite", "inputs[0]")
    good = binary([GOOD], {"keep": True})
    length = good.headers["Inference-Header-Content-Length"]
    asked = decode_predict_tensors(good.body, length, IMAGE)
    assert (asked.x.shape, asked.keep, asked.single) == ((2, 1, 2, 2), True, False)


def packed(x: Any = (1, 2, 3, 4), **more: Any) -> bytes:
    return msgspec.msgpack.encode({"x": x, "label": 1} | more)


RAW = {"dtype": "uint8", "shape": [4]}
BAD_OBJECTS = {
    "not MessagePack": (b"\xc1", "bad_binary", None),
    "empty": (b"", "bad_binary", None),
    "cut short": (packed()[:-1], "bad_binary", None),
    "goes on": (packed() + b"\0", "bad_binary", None),
    "a list of 4 billion": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "bad_binary", None),
    "4 GB of bytes": (b"\x81\xa1x\xc6\xff\xff\xff\xff", "bad_binary", None),
    "4 billion fields": (b"\xdf\xff\xff\xff\xff", "bad_binary", None),
    "deep x": (b"\x81\xa1x" + b"\x91" * 100_000 + b"\1", "bad_binary", None),
    "a key that is no text": (b"\x81\x01\x01", "bad_field", None),
    "not UTF-8": (b"\x81\xa5label\xa2\xff\xff", "bad_binary", None),
    "NaN": (packed([1, 2, 3, float("nan")]), "not_finite", "x"),
    "infinite": (packed([1, 2, 3, float("inf")]), "not_finite", "x"),
    "ts NaN": (packed(ts=float("nan")), "bad_field", "ts"),
    "x an extension": (packed(msgspec.msgpack.Ext(5, b"abcd")), "bad_field", "x"),
    "x of extensions": (packed([msgspec.msgpack.Ext(5, b"a")] * 4), "bad_field", "x"),
    "label as bytes": (packed(label=b"a"), "bad_field", "label"),
    "label of 64 bits": (packed(label=2**64 - 1), "bad_field", "label"),
    "label a bool": (packed(label=True), "bad_field", "label"),
    "ragged": (packed([[1, 2], [3]]), "bad_shape", "x"),
    "bytes without a shape": (packed(b"abcd", dtype="uint8"), "bad_field", "dtype"),
    "bytes without a type": (packed(b"abcd", shape=[4]), "bad_field", "dtype"),
    "bytes too few": (packed(b"abc", **RAW), "bad_binary", "x"),
    "bytes too many": (packed(b"abcde", **RAW), "bad_binary", "x"),
    "an unknown type": (packed(b"abcd", dtype=MARK, shape=[4]), "bad_field", "dtype"),
    "an object type": (packed(b"abcdefgh", dtype="O", shape=[1]), "bad_field", "dtype"),
    "another shape": (packed(b"abcd", dtype="uint8", shape=[2, 2]), "bad_shape", "shape"),
    "a shape of billions": (packed(b"", dtype="uint8", shape=[2**31] * 4), "bad_shape", "shape"),
    "a shape below zero": (packed(b"", dtype="uint8", shape=[-1]), "bad_field", "shape[0]"),
    "a type without bytes": (packed(**RAW), "bad_field", "dtype"),
    "floats not finite": (
        packed(np.array([1, np.nan], "<f4").tobytes() * 2, dtype="float32", shape=[4]),
        "not_finite",
        "x",
    ),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_wrong_objects_are_refused(case: str) -> None:
    body, code, field = BAD_OBJECTS[case]
    status = 400 if code == "bad_binary" else 422
    refused(lambda: decode_objects(body, FLAT, KEPT, MESSAGE_PACK), status, code, field)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        (
            '"x_b64": "AQIDBA==", "dtype": "uint8", "shape": [4], "x": [1,2,3,4]',
            "bad_field",
            "x_b64",
        ),
        ('"x_b64": "####", "dtype": "uint8", "shape": [4]', "bad_field", "x_b64"),
        ('"x_b64": "AQID", "dtype": "uint8", "shape": [4]', "bad_binary", "x_b64"),
        ('"inputs": []', "bad_field", "inputs"),
        ('"inputs": [{"shape": [1], "datatype": "FP32"}]', "bad_field", "inputs[0].data"),
        (
            f'"inputs": [{{"shape": [1,4], "datatype": "{MARK}", "data": [1,2,3,4]}}]',
            "bad_field",
            "inputs[0].datatype",
        ),
        (
            '"inputs": [{"shape": [2,4], "datatype": "FP32", "data": [1,2,3,4,5,6,7,8]}]',
            "bad_shape",
            "inputs[0].shape",
        ),
        (
            '"inputs": [{"shape": [1,4], "datatype": "FP32", "data": [1,2,3]}]',
            "bad_shape",
            "inputs[0].data",
        ),
    ],
)
def test_other_ways_to_give_features_are_as_strict(fields: str, code: str, field: str) -> None:
    body = f'{{{fields}, "label": 1}}'.encode()
    status = 400 if code == "bad_binary" else 422
    refused(lambda: decode_objects(body, FLAT, KEPT, JSON), status, code, field)


def test_infer_data_may_be_nested() -> None:
    body = b'{"inputs": [{"shape": [1,1,2,2], "datatype": "FP32", "data": [[[[1,2],[3,4]]]]}]}'
    (sample,) = decode_objects(body, IMAGE, KEPT, JSON).entries
    assert sample == Sample(bytes([1, 2, 3, 4]), "uint8", None, None, "", None)


PICTURE = png(np.arange(4, dtype=np.uint8).reshape(1, 2, 2))
BAD_FORMS = {
    "no picture": ([("label", b"a")], "bad_field", "samples"),
    "an unknown part": ([("image", PICTURE), (MARK, b"a")], "bad_field", None),
    "labels of another number": (
        [("image", PICTURE)] * 3 + [("label", b"a")] * 2,
        "bad_field",
        "label",
    ),
    "ids of another number": ([("image", PICTURE)] * 2 + [("id", b"a")], "bad_field", "id"),
    "source twice": ([("image", PICTURE)] + [("source", b"a")] * 2, "bad_field", "source"),
    "a label that is no text": ([("image", PICTURE), ("label", b"\xff")], "bad_field", "label"),
    "a label of blanks": ([("image", PICTURE), ("label", b"  ")], "bad_field", "label"),
    "an id of the store's": ([("image", PICTURE), ("id", b"s-1")], "bad_field", "id"),
    "a picture that is none": ([("image", b"GIF89a")], "bad_picture", "image"),
}


@pytest.mark.parametrize("case", BAD_FORMS)
def test_wrong_forms_are_refused(case: str) -> None:
    fields, code, field = BAD_FORMS[case]
    sent = form(fields)
    refused(lambda: decode_form(sent.body, sent.media_type, IMAGE), 422, code, field)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", f"multipart/form-data; boundary={BOUNDARY}"),
        (form([("image", PICTURE)]).body[:-6], f"multipart/form-data; boundary={BOUNDARY}"),
        (form([("image", PICTURE)]).body, "multipart/form-data"),
        (form([("image", PICTURE)]).body, "multipart/form-data; boundary=other"),
        (form([("label", b"a")] * 800).body, f"multipart/form-data; boundary={BOUNDARY}"),
        (
            f"--{BOUNDARY}\r\n".encode() + b"A: b\r\n" * 100,
            f"multipart/form-data; boundary={BOUNDARY}",
        ),
        (f"--{BOUNDARY}\r\n".encode() + b"A" * 10**6, f"multipart/form-data; boundary={BOUNDARY}"),
    ],
    ids=["empty", "cut short", "no boundary", "another", "parts", "headers", "header"],
)
def test_what_is_no_form_is_refused(body: bytes, media_type: str) -> None:
    refused(lambda: decode_form(body, media_type, IMAGE), 400, "bad_binary")


def test_a_form_keeps_the_order_of_good_and_bad() -> None:
    fields = [("image", PICTURE), ("image", b"GIF"), ("image", PICTURE), ("label", b"7")]
    sent = form(fields)
    first, bad, third = decode_form(sent.body, sent.media_type, IMAGE).entries
    assert (first.label, first.features, third.label) == (7, bytes([0, 1, 2, 3]), 7)
    assert bad.code == "bad_picture"


def test_a_pictures_url_is_as_strict() -> None:
    refused(lambda: decode_picture(PICTURE, {MARK: "1"}, IMAGE), 422, "bad_field")
    refused(lambda: decode_picture(PICTURE, {"label": " "}, IMAGE), 422, "bad_field", "label")
    (sample,) = decode_picture(PICTURE, {"label": "007"}, IMAGE).entries
    assert sample.label == "007"
