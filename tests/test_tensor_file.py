"""A tensor file comes back to the bit, or is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from engines import Weights, WeightsError, weights_digest, weights_from_bytes, weights_to_bytes
from engines.tensor_file import TensorFileError, pack, unpack
from tests.daemon_fixtures import network, with_element

DTYPES = [np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_]
FIELDS = {"format": "test", "version": 3, "names": ["a", "é"], "nothing": None}


def small() -> tuple[dict, dict]:
    arrays = {
        "scalar": np.float32(1.5).reshape(()),
        "codes": np.arange(-4, 4, dtype=np.int8).reshape(2, 4),
        "bias": np.array([0.5, -0.0], dtype=np.float32),
    }
    return arrays, {"model": "mlp", "classes": ["a", 3]}


def same(a, b) -> bool:
    return {n: (x.dtype, x.shape, x.tobytes()) for n, x in a.items()} == {
        n: (x.dtype, x.shape, x.tobytes()) for n, x in b.items()
    }


arrays = st.dictionaries(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st_numpy.arrays(
            dtype, st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
        )
    ),
    max_size=4,
)


@given(arrays)
def test_what_is_packed_comes_back_to_the_bit(arrays):
    got, fields = unpack(pack(arrays, FIELDS))
    assert same(got, arrays)
    assert fields == FIELDS


def test_a_transposed_array_comes_back_as_it_looks():
    got, _ = unpack(pack({"t": np.arange(6, dtype=np.float32).reshape(2, 3).T}, {}))
    np.testing.assert_array_equal(got["t"], [[0, 3], [1, 4], [2, 5]])


def test_equal_arguments_give_equal_bytes():
    arrays, fields = small()
    content = pack(arrays, fields)
    backwards = {name: arrays[name].copy() for name in reversed(arrays)}
    turned = dict(reversed(fields.items()))
    assert {pack(backwards, turned) for _ in range(20)} == {content}
    assert pack(arrays, fields | {"model": "other"}) != content


def test_any_flipped_bit_is_refused():
    content = pack(*small())
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TensorFileError):
            unpack(bytes(damaged))


def test_any_truncation_and_any_addition_is_refused():
    content = pack(*small())
    for length in range(len(content)):
        with pytest.raises(TensorFileError):
            unpack(content[:length])
    for addition in (b"\0", b" ", content):
        with pytest.raises(TensorFileError):
            unpack(content + addition)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"scalar": np.zeros(3)}),
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY\x01\x00",
        with_header(b"{}"),
        with_header(b"[" * 10_000),
        with_header(b'{"__metadata__":{"ffedge":"{}"}}'),
        with_header(b'{"__metadata__":{"ffedge":"[]","sha256":""}}'),
        with_header(b'{"__metadata__":{"ffedge":"{","sha256":""}}'),
        with_header(json.dumps({"__metadata__": {"ffedge": "[" * 10**5, "sha256": ""}}).encode()),
        with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    ],
    ids=range(10),
)
def test_something_else_altogether_is_refused(content):
    with pytest.raises(TensorFileError):
        unpack(content)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(content):
    with pytest.raises(TensorFileError):
        unpack(content)


@pytest.mark.parametrize(
    "content",
    [
        (2**40).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        with_header(
            b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        ),
        with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    ],
)
def test_a_size_that_is_only_claimed_is_never_allocated(content):
    tracemalloc.start()
    try:
        with pytest.raises(TensorFileError):
            unpack(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_weights_come_back_as_they_were():
    weights = dataclasses.replace(network(7), classes=("a", 3), parent=6, last_seq=99)
    back = weights_from_bytes(weights_to_bytes(weights))
    assert same(back.arrays, weights.arrays)
    assert dataclasses.replace(back, arrays={}) == dataclasses.replace(weights, arrays={})
    assert {weights_to_bytes(back) for _ in range(20)} == {weights_to_bytes(weights)}


def test_any_sampled_damage_to_weights_is_refused():
    content = weights_to_bytes(network(1))
    draw = np.random.default_rng(0)
    for bit in draw.integers(8 * len(content), size=500):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WeightsError):
            weights_from_bytes(bytes(damaged))
    for percent in range(100):
        with pytest.raises(WeightsError):
            weights_from_bytes(content[: len(content) * percent // 100])


def rewritten(weights: Weights, **changes) -> bytes:
    """A file whole in itself, with a valid digest, that says something else."""
    arrays, fields = unpack(weights_to_bytes(weights))
    return pack(arrays, fields | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "ffedge-weights-0"}, "another format"),
        ({"model": {"name": "mlp"}}, "describes no weights"),
        ({"model": None}, "must hold just"),
        ({"model": network(1).spec.to_json() | {"name": "cnn"}}, "unknown"),
        ({"model": network(1).spec.to_json() | {"hidden": [8, 9]}}, "the model needs"),
        ({"model": network(1).spec.to_json() | {"hidden": [8, 8, 8]}}, "missing"),
        ({"model": network(1).spec.to_json() | {"input_shape": [7]}}, "the model needs"),
        ({"model": network(1).spec.to_json() | {"input_shape": [2**40]}}, "int32"),
        ({"classes": ["a", "b", "c", "d"]}, "4 classes, places for 3"),
        ({"classes": None}, "describes no weights"),
    ],
)
def test_weights_that_do_not_fit_their_own_description_are_refused(changes, message):
    with pytest.raises(WeightsError, match=message):
        weights_from_bytes(rewritten(network(1), **changes))


def test_a_field_that_is_missing_is_refused():
    arrays, fields = unpack(weights_to_bytes(network(1)))
    for name in fields:
        rest = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(WeightsError, match=name):
            weights_from_bytes(pack(arrays, rest))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_file_with_a_value_that_is_not_finite_is_refused(value):
    poisoned = with_element(network(1), "units.0.bias", value)
    with pytest.raises(WeightsError, match="not finite"):
        weights_from_bytes(weights_to_bytes(poisoned))


def test_the_digest_speaks_for_all_that_the_weights_hold():
    plain = network(1)
    others = [
        dataclasses.replace(plain, version=2),
        dataclasses.replace(plain, parent=9),
        dataclasses.replace(plain, last_seq=9),
        dataclasses.replace(plain, classes=("a", "b", "d")),
        with_element(plain, "units.0.bias", 0.125),
    ]
    assert len({weights_digest(weights) for weights in [plain, *others]}) == 6
    assert weights_digest(dataclasses.replace(plain)) == weights_digest(plain)
