"""Whatever arrives, decoding answers or refuses; whatever is kept comes back to the bit."""

from __future__ import annotations

import functools
import itertools
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import RequestError
from daemon.http.train_routes import TrainBody
from daemon.ingest.encoding import JSON, MESSAGE_PACK, decode_json
from daemon.ingest.features import DATATYPES
from daemon.ingest.forms import FORMS, PREDICT_TYPES, Payload
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import decode_objects
from daemon.ingest.sample import pack_features, unpack_features
from daemon.ingest.tensors import decode_tensors
from models import ModelSpec
from tests import sample_forms

FLAT = ModelSpec("mlp", (4,), 3, (8,))
IMAGE = ModelSpec("mlp", (1, 2, 2), 3, (8,))
KEPT = KeptPredictions(by_default=False)
KINDS = [*DATATYPES, "BYTES", "BOOL"]


@given(
    st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"x":\[[^\x00]*', fullmatch=True)
)
def test_random_bytes_meet_a_request_error_or_decode(body):
    sent = Payload(body, "multipart/form-data; boundary=a", "2", {"label": "a"})
    for call in (
        *(functools.partial(form.samples, sent, IMAGE, KEPT) for form in FORMS.values()),
        *(functools.partial(FORMS[kind].inputs, sent, IMAGE) for kind in PREDICT_TYPES),
        lambda: decode_json(body, TrainBody),
    ):
        try:
            call()
        except RequestError as error:
            json.dumps(error.body(), allow_nan=False).encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


FIELDS = ("x", "x_b64", "dtype", "shape", "inputs", "inference_id", "label", "id", "source", "ts")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, VALUES)))
def test_any_value_in_any_field_meets_a_request_error_or_decodes(body):
    def fits(value):
        if isinstance(value, int):
            return -(2**63) <= value < 2**64
        inner = value.values() if isinstance(value, dict) else value
        return not isinstance(value, list | dict) or all(map(fits, inner))

    texts = [(JSON, json.dumps(body).encode())]
    if fits(body):  # MessagePack has no larger numbers
        texts.append((MESSAGE_PACK, msgspec.msgpack.encode(body)))
    for spec, (encoding, text) in itertools.product((FLAT, IMAGE), texts):
        try:
            entries = decode_objects(text, spec, KEPT, encoding).entries
        except RequestError as error:
            json.dumps(error.body(), allow_nan=False).encode()
        else:
            assert unpack_features(entries[0].features, entries[0].dtype, spec).size == 4


@given(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "label", "id", "y"]), "datatype": st.sampled_from(KINDS)},
        optional={
            "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 4, 8, 2**31, 2**70]), max_size=5),
            "parameters": st.fixed_dictionaries(
                {"binary_data_size": st.sampled_from([-1, 0, 4, 8, 16, 2**31, 2**70])}
            ),
        },
    ),
    st.binary(max_size=32),
)
def test_any_tensor_meets_a_request_error_or_decodes(tensor, raw):
    parts = [{"name": "x", "datatype": "UINT8", "shape": [2, 4]}, tensor]
    parts[0]["parameters"] = {"binary_data_size": 8}
    for inputs in ([tensor], parts):
        header = json.dumps({"inputs": inputs}).encode()
        body = header + (bytes(8) if inputs is parts else b"") + raw
        try:
            entries = decode_tensors(body, str(len(header)), FLAT).entries
        except RequestError as error:
            json.dumps(error.body(), allow_nan=False).encode()
        else:
            assert all(
                isinstance(entry, RequestError)
                or unpack_features(entry.features, entry.dtype, FLAT).size == 4
                for entry in entries
            )


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=5))
def test_every_form_of_floats_comes_back_to_the_bit(rows):
    x = np.array(rows, np.float32)
    ids = [str(i) for i in range(len(x))]
    given = sample_forms.Given(x, list(range(len(x))), ids, "a")
    for sent in (
        sample_forms.json_batch(given, sample_forms.base64_bytes),
        sample_forms.message_pack(given, sample_forms.numbers),
        sample_forms.message_pack(given, sample_forms.raw_bytes),
        sample_forms.tensors(given),
        sample_forms.lines(given),
    ):
        length = sent.headers.get("Inference-Header-Content-Length")
        payload = Payload(sent.body, sent.media_type, length)
        entries = FORMS[sent.media_type].samples(payload, FLAT, KEPT).entries
        for entry, row in zip(entries, x, strict=True):
            assert same_bits(unpack_features(entry.features, entry.dtype, FLAT), row)


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_whole_numbers_of_a_byte_are_kept_as_bytes(values):
    x = np.array(values, dtype=np.float32).reshape(IMAGE.input_shape)
    features, dtype = pack_features(x)
    assert (len(features), dtype) == (4, "uint8")
    assert same_bits(unpack_features(features, dtype, IMAGE), x)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_any_float32_comes_back_to_the_bit(values):
    x = np.array(values, dtype=np.float32)
    assert same_bits(unpack_features(*pack_features(x), FLAT), x)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.0, "uint8"),
        (255.0, "uint8"),
        (256.0, "float32"),
        (-0.0, "float32"),
        (-1.0, "float32"),
        (0.5, "float32"),
        (254.99998, "float32"),
        (1e-45, "float32"),  # the smallest subnormal
        (3.4028235e38, "float32"),
    ],
)
def test_a_value_that_is_no_byte_makes_the_sample_float32(value, dtype):
    x = np.array([1, 2, 3, value], dtype=np.float32)
    features, chosen = pack_features(x)
    assert chosen == dtype
    assert same_bits(unpack_features(features, chosen, FLAT), x)
