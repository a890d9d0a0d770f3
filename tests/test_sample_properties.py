"""Whatever arrives, decoding answers or refuses; whatever is kept comes back to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import RequestError
from daemon.http.learning_routes import TrainBody
from daemon.ingest.encoding import JSON, decode_json
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import decode_lines, decode_objects, decode_predict_objects
from daemon.ingest.sample import pack_features, unpack_features
from models import ModelSpec

FLAT = ModelSpec("mlp", (4,), 3, (8,))
IMAGE = ModelSpec("mlp", (1, 2, 2), 3, (8,))
KEPT = KeptPredictions(by_default=False)


@given(
    st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"x":\[[^\x00]*', fullmatch=True)
)
def test_random_bytes_meet_a_request_error_or_decode(body):
    for call in (
        lambda: decode_objects(body, FLAT, KEPT, JSON),
        lambda: decode_lines(body, FLAT, KEPT),
        lambda: decode_predict_objects(body, FLAT, JSON),
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


@given(
    st.fixed_dictionaries({}, optional={k: VALUES for k in ("x", "label", "id", "source", "ts")})
)
def test_any_json_value_in_any_field_meets_a_request_error_or_decodes(body):
    text = json.dumps(body).encode()
    for spec in (FLAT, IMAGE):
        try:
            entries = decode_objects(text, spec, KEPT, JSON).entries
        except RequestError as error:
            json.dumps(error.body(), allow_nan=False).encode()
        else:
            assert unpack_features(entries[0].features, entries[0].dtype, spec).size == 4


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
