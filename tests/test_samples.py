"""What clients send is decoded strictly; what is refused is named, and never repeated."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daemon.errors import (
    BadFieldError,
    BadJsonError,
    BadShapeError,
    NotFiniteError,
    RequestError,
    TooLargeError,
)
from daemon.http.train_routes import TrainBody
from daemon.ingest.encoding import JSON as JSON_ENCODING
from daemon.ingest.encoding import decode_json
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import (
    STREAM_LIMIT_LINES,
    decode_lines,
    decode_objects,
    decode_predict_objects,
)
from daemon.ingest.sample import BATCH_LIMIT, Sample, unpack_features
from models import ModelSpec

FLAT = ModelSpec("mlp", (4,), 3, (8,))
IMAGE = ModelSpec("mlp", (1, 2, 2), 3, (8,))
KEPT = KeptPredictions(by_default=False)
MARK = "EvilMark"  # stands in hostile input; must not come back in an answer
DEEP = "[" * 100_000 + "]" * 100_000

JSON, FIELD, SHAPE, FINITE = BadJsonError, BadFieldError, BadShapeError, NotFiniteError
STATUS_AND_CODE = {
    JSON: (400, "bad_json"),
    FIELD: (422, "bad_field"),
    SHAPE: (422, "bad_shape"),
    FINITE: (422, "not_finite"),
}


def one(x: str = "[1, 2, 3, 4]", label: str = '"a"', more: str = "") -> str:
    return f'{{"x": {x}, "label": {label}{more}}}'


def decode(body: str | bytes, *, stream: bool = False, spec: ModelSpec = FLAT):
    raw = body.encode() if isinstance(body, str) else body
    if stream:
        return decode_lines(raw, spec, KEPT)
    return decode_objects(raw, spec, KEPT, JSON_ENCODING)


def decode_predict(body: bytes, spec: ModelSpec):
    return decode_predict_objects(body, spec, JSON_ENCODING)


def test_one_sample():
    more = ', "id": "cam0-17", "source": "cam0", "ts": "2026-01-01T00:00:00Z"'
    request = decode(one("[0, 12, 255, 3]", "7", more))
    sample = Sample(bytes([0, 12, 255, 3]), "uint8", 7, "cam0-17", "cam0", "2026-01-01T00:00:00Z")
    assert request.single
    assert request.entries == [sample]


def test_all_but_features_may_be_absent():
    (sample,) = decode(one()).entries
    assert sample == Sample(bytes([1, 2, 3, 4]), "uint8", "a", None, "", None)
    for body in ('{"x": [1, 2, 3, 4]}', one(label="null")):
        (unlabelled,) = decode(body).entries
        assert unlabelled == Sample(bytes([1, 2, 3, 4]), "uint8", None, None, "", None)


def test_a_batch_names_its_source_once():
    other = one(label="3", more=', "source": "b"')
    request = decode(f'{{"samples": [{one()}, {other}], "source": "a"}}')
    assert not request.single
    assert [(s.label, s.source) for s in request.entries] == [("a", "a"), (3, "b")]


def test_a_stream_is_one_object_a_line():
    request = decode(f"{one(label='1')}\r\n\n{one(label='2')}\n", stream=True)
    assert not request.single
    assert [s.label for s in request.entries] == [1, 2]


@pytest.mark.parametrize("x", ["[1, 2, 3, 4]", "[[[1, 2], [3, 4]]]", "\n[ [\t[1,2],[3,4] ] ]"])
def test_features_come_flat_or_nested_in_the_models_shape(x):
    (sample,) = decode(one(x), spec=IMAGE).entries
    np.testing.assert_array_equal(
        unpack_features(sample.features, sample.dtype, IMAGE), [[[1, 2], [3, 4]]]
    )


REFUSED = {
    # The body is not what its content type says.
    "empty body": ("", JSON, None),
    "truncated": (one()[:-1], JSON, None),
    "trailing comma": (one(more=","), JSON, None),
    "trailing comma in x": (one("[1, 2, 3, 4,]"), JSON, None),
    "two objects": (one() + one(), JSON, None),
    "text": (MARK, JSON, None),
    "byte order mark": (b"\xef\xbb\xbf" + one().encode(), JSON, None),
    "not UTF-8": (one(label='"?"').encode().replace(b"?", b"\xff"), JSON, None),
    "lone surrogate in label": (one(label='"\\ud800"'), JSON, None),
    "lone surrogate as key": (one(more=', "\\ud800": 1'), JSON, None),
    "NaN": (one("[NaN, 2, 3, 4]"), JSON, None),
    "Infinity": (one("[1, 2, 3, Infinity]"), JSON, None),
    "-Infinity as label": (one(label="-Infinity"), JSON, None),
    "leading zero": (one("[01, 2, 3, 4]"), JSON, None),
    "x nested too deep": (one(DEEP), JSON, None),
    "label nested too deep": (one(label=DEEP), (JSON, FIELD), (None, "label")),
    "unknown field nested too deep": (one(more=f', "{MARK}": {DEEP}'), (JSON, FIELD), (None,)),
    # Decodable, but a field is missing, unknown or of the wrong type.
    "number": ("5", FIELD, None),
    "null": ("null", FIELD, None),
    "list": (f"[{one()}]", FIELD, None),
    "only brackets": (DEEP, FIELD, None),
    "x missing": (f'{{"label": "{MARK}"}}', FIELD, "x"),
    "unknown field": (one(more=f', "{MARK}": 1'), FIELD, None),
    "x is text": (one(f'"{MARK}"'), FIELD, "x"),
    "x is a number": (one("5"), FIELD, "x"),
    "x is null": (one("null"), FIELD, "x"),
    "x is an object": (one(f'{{"{MARK}": 1}}'), FIELD, "x"),
    "text in x": (one(f'["{MARK}", 2, 3, 4]'), FIELD, "x"),
    "numeral as text in x": (one('["1", 2, 3, 4]'), FIELD, "x"),
    "bool in x": (one("[true, 2, 3, 4]"), FIELD, "x"),
    "null in x": (one("[null, 2, 3, 4]"), FIELD, "x"),
    "list beside numbers in x": (one("[1, [2, 3], 4]"), FIELD, "x"),
    "label of blanks": (one(label='"  "'), FIELD, "label"),
    "label that ends with a blank": (one(label=f'"{MARK} "'), FIELD, "label"),
    "label with a line break": (one(label='"a\\nb"'), FIELD, "label"),
    "label with a NUL": (one(label='"a\\u0000b"'), FIELD, "label"),
    "label true": (one(label="true"), FIELD, "label"),
    "label 1.0": (one(label="1.0"), FIELD, "label"),
    "label empty": (one(label='""'), FIELD, "label"),
    "label list": (one(label=f'["{MARK}"]'), FIELD, "label"),
    "label object": (one(label=f'{{"{MARK}": 1}}'), FIELD, "label"),
    "label too long": (one(label=f'"{MARK * 9}"'), FIELD, "label"),
    "label of 4000 digits": (one(label="9" * 4000), FIELD, "label"),
    "label beyond 63 bits": (one(label=str(2**63)), FIELD, "label"),
    "id empty": (one(more=', "id": ""'), FIELD, "id"),
    "id of 65 characters": (one(more=f', "id": "{"a" * 65}"'), FIELD, "id"),
    "id with a blank": (one(more=f', "id": "{MARK} 1"'), FIELD, "id"),
    "id with a newline": (one(more=f', "id": "{MARK}\\n"'), FIELD, "id"),
    "id a number": (one(more=', "id": 17'), FIELD, "id"),
    "id of the store's own": (one(more=', "id": "s-17"'), FIELD, "id"),
    "source empty": (one(more=', "source": ""'), FIELD, "source"),
    "source too long": (one(more=f', "source": "{MARK * 9}"'), FIELD, "source"),
    "ts too long": (one(more=f', "ts": "{MARK * 9}"'), FIELD, "ts"),
    "ts a list": (one(more=f', "ts": ["{MARK}"]'), FIELD, "ts"),
    "ts 1e999": (one(more=', "ts": 1e999'), FIELD, "ts"),
    # Numbers, but not the model's.
    "no numbers": (one("[]"), SHAPE, "x"),
    "too few": (one("[1, 2, 3]"), SHAPE, "x"),
    "too many": (one("[1, 2, 3, 4, 5]"), SHAPE, "x"),
    "nested, model is flat": (one("[[1, 2], [3, 4]]"), SHAPE, "x"),
    # Numbers that float32 does not hold.
    "1e999": (one("[1e999, 2, 3, 4]"), FINITE, "x"),
    "1e39": (one("[1, 2, 3, -1e39]"), FINITE, "x"),
    "4000 digits in x": (one(f"[{'9' * 4000}, 2, 3, 4]"), FINITE, "x"),
}


def check_error(error: RequestError, kind, field) -> None:
    assert isinstance(error, kind)
    assert (error.status, error.code) == STATUS_AND_CODE[type(error)]
    assert error.field in (field if isinstance(field, tuple) else (field,))
    answer = json.dumps(error.body(), allow_nan=False)
    assert MARK not in answer
    assert len(answer) < 300
    assert "daemon." not in answer


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_sample_is_refused_by_name(case):
    body, kind, field = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        decode(body)
    check_error(caught.value, kind, field)


@pytest.mark.parametrize("x", ["[[[1, 2], [3]]]", "[[[1, 2, 3, 4]]]", "[[1, 2], [3, 4]]", "[[]]"])
def test_another_shape_than_the_images_is_refused(x):
    with pytest.raises(BadShapeError, match=r"flat or of shape \[1, 2, 2\]") as caught:
        decode(one(x), spec=IMAGE)
    assert caught.value.field == "x"


@pytest.mark.parametrize("case", [case for case in REFUSED if case != "empty body"])
def test_a_bad_line_of_a_stream_spoils_no_other(case):
    body, kind, field = REFUSED[case]
    raw = body.encode() if isinstance(body, str) else body
    good = one().encode()
    entries = decode(b"\n".join([good, raw, good]), stream=True).entries
    assert [type(entry) for entry in entries[::2]] == [Sample, Sample]
    check_error(entries[1], kind, field)


@pytest.mark.parametrize("body", ['{"x": [1, 2, 3, 4]}', one(label="null")])
def test_a_sample_may_come_without_a_label(body):
    (entry,) = decode(body).entries
    assert isinstance(entry, Sample)
    assert entry.label is None


def test_a_batch_keeps_the_order_of_good_and_bad():
    texts = [one(label="1"), one("[1]"), one(label="[]"), one(label="2"), "7"]
    entries = decode(f'{{"samples": [{", ".join(texts)}]}}').entries
    assert [type(entry) for entry in entries] == [Sample, SHAPE, FIELD, Sample, FIELD]
    assert [entry.label for entry in entries if isinstance(entry, Sample)] == [1, 2]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"samples": null}', "samples"),
        ('{"samples": []}', "samples"),
        (f'{{"samples": {{"{MARK}": 1}}}}', "samples"),
        (f'{{"samples": [{one()}], "{MARK}": 1}}', None),
        (f'{{"samples": [{one()}], "source": ""}}', "source"),
    ],
)
def test_a_bad_envelope_refuses_the_batch(body, field):
    with pytest.raises(BadFieldError) as caught:
        decode(body)
    check_error(caught.value, BadFieldError, field)


@pytest.mark.parametrize(
    ("limit", "body"),
    [
        (BATCH_LIMIT, lambda n: f'{{"samples": [{", ".join([one("[]")] * n)}]}}'),
        (STREAM_LIMIT_LINES, lambda n: "\n".join([one("[]")] * n)),
    ],
    ids=["batch", "stream"],
)
def test_one_sample_more_than_the_limit_is_too_large(limit, body):
    stream = limit == STREAM_LIMIT_LINES
    assert len(decode(body(limit), stream=stream).entries) == limit
    with pytest.raises(TooLargeError, match=f"at most {limit}"):
        decode(body(limit + 1), stream=stream)


def test_an_empty_stream_is_refused():
    with pytest.raises(BadFieldError, match="holds no sample"):
        decode("\n \n", stream=True)


def test_predict_takes_one_or_several():
    one = decode_predict(b'{"x": [1, 2, 3, 4]}', IMAGE)
    assert (one.single, one.keep) == (True, None)
    assert (one.x.shape, one.x.dtype) == ((1, 1, 2, 2), np.float32)
    body = b'{"samples": [{"x": [1,2,3,4]}, {"x": [5,6,7,8]}], "keep": true}'
    many = decode_predict(body, FLAT)
    assert (many.single, many.keep) == (False, True)
    np.testing.assert_array_equal(many.x, [[1, 2, 3, 4], [5, 6, 7, 8]])


def test_predict_names_the_sample_that_is_wrong():
    with pytest.raises(BadShapeError, match=r"samples\[1\]\.x") as caught:
        decode_predict(b'{"samples": [{"x": [1,2,3,4]}, {"x": [5]}]}', FLAT)
    check_error(caught.value, BadShapeError, "samples[1].x")


@pytest.mark.parametrize("body", ['{"samples": []}', one(), "{}", '{"samples": [{}]}'])
def test_predict_is_as_strict(body):
    with pytest.raises(BadFieldError):
        decode_predict(body.encode(), FLAT)


@pytest.mark.parametrize("body", ['{"max_steps": 0}', '{"max_steps": true}', '{"reason": 1}'])
def test_train_is_as_strict(body):
    with pytest.raises(BadFieldError):
        decode_json(body.encode(), TrainBody)
    assert decode_json(b"{}", TrainBody) == TrainBody(max_steps=None, reason="operator")
