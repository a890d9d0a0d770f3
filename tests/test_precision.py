"""The three products of a dense layer, in either precision, against the integers they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.precision import PRECISIONS, Accumulated, Fp32, Int8
from engines.recipe import PRECISION_NAMES
from tests import reference

sizes = st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(1, 24))


def test_every_name_of_a_recipe_has_its_precision():
    assert [*PRECISIONS] == [*PRECISION_NAMES]
    assert all(precision.name == name for name, precision in PRECISIONS.items())


def operands(batch: int, inputs: int, outputs: int, seed: int):
    """Codes of an input, of weights and of an error."""
    rng = np.random.default_rng(seed)
    shapes = (batch, inputs), (outputs, inputs), (batch, outputs)
    return [rng.integers(-127, 128, shape).astype(np.int8) for shape in shapes]


def products(precision, a, w, e):
    return [
        (precision.linear(a, w), a.numpy(), w.numpy().T),
        (precision.linear_grad_weight(e, a), e.numpy().T, a.numpy()),
        (precision.linear_grad_input(e, w), e.numpy(), w.numpy()),
    ]


@given(sizes=sizes, seed=st.integers(0, 2**32 - 1))
def test_int8_products_equal_the_int64_oracle(sizes, seed):
    a, w, e = map(torch.from_numpy, operands(*sizes, seed))
    for found, left, right in products(Int8(), a, w, e):
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found.numpy(), reference.int_matmul(left, right))


@given(sizes=sizes, seed=st.integers(0, 2**32 - 1))
def test_fp32_products_are_the_plain_ones(sizes, seed):
    a, w, e = (torch.from_numpy(codes / 100.0).float() for codes in operands(*sizes, seed))
    for found, left, right in products(Fp32(), a, w, e):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, left @ right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [Int8(), Fp32()], ids=lambda p: p.name)
def test_two_products_share_no_memory(precision):
    """Prediction, which several threads may run, keeps nothing between calls."""
    a, w, _ = (torch.from_numpy(codes) for codes in operands(32, 16, 8, 1))
    if precision.name == "fp32":
        a, w = a.float(), w.float()
    assert precision.linear(a, w).data_ptr() != precision.linear(a, w).data_ptr()


def test_int8_scales_and_codes_are_those_of_the_quantizer():
    x = torch.tensor([[0.5, -3.0, 300.0]])
    assert Int8().scale(torch.tensor([254.0, 0.0])).tolist() == [2, 1]
    assert Int8().quantize(x, torch.tensor(0.5)).tolist() == [[1, -6, 127]]
    noise = torch.tensor([[3 << 14, 1 << 14, 1 << 15]], dtype=torch.int32)
    assert Int8().round(x / 2, noise).tolist() == [[1, -2, 127]]


def test_fp32_has_scale_one_and_rounds_nothing():
    x = torch.tensor([[0.5, -3.0, 300.0]])
    assert Fp32().scale(torch.tensor([254.0, 0.0])).tolist() == [1, 1]
    codes = Fp32().quantize(x, torch.ones(()))
    assert torch.equal(codes, x)
    # The weights' codes must survive the step that moves their master in place.
    assert codes.data_ptr() != x.data_ptr()
    assert torch.equal(Fp32().round(x, torch.full_like(x, 0.7)), x)


def test_an_accumulator_stands_for_its_values_times_its_scale():
    values = torch.tensor([[3, -4], [5, 6]], dtype=torch.int32)
    found = Accumulated(values, torch.tensor([[0.5], [2.0]])).dequantize()
    assert found.tolist() == [[1.5, -2.0], [10.0, 12.0]]
    assert found.dtype == torch.float32
