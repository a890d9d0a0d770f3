"""Features: an activation on codes is the activation on what they stand for, rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from engines.feature import ACTIVATIONS, Feature, activation_slope, activity_codes
from engines.precision import PRECISIONS

INT8, FP32 = PRECISIONS["int8"], PRECISIONS["fp32"]
ALL_CODES = torch.arange(-127, 128, dtype=torch.int8)
FUNCTIONS = {"none": lambda z: z, "relu": torch.relu, "relu6": F.relu6, "silu": F.silu}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
scales = st.floats(2.0**-20, 2.0**20, width=32)


def test_every_activation_has_an_oracle():
    assert [*FUNCTIONS] == [*ACTIVATIONS]


@every_activation
@given(scale=scales)
def test_codes_are_those_of_the_activations_value_to_the_nearest(activation, scale):
    found = activity_codes(INT8, ALL_CODES, torch.tensor(scale), activation)
    assert found.dtype == torch.int8
    wanted = FUNCTIONS[activation](ALL_CODES.double() * scale) / scale
    # Half a step, and 2^-16 of one for float32: 127 of them are multiplied, divided and rounded.
    assert ((found.double() - wanted).abs() <= 0.5 + 2**-16).all()
    # No activation makes anything larger: the pre-activation's scale serves both.
    assert (found.abs().int() <= ALL_CODES.abs().int()).all()


@given(scale=scales)
def test_relu_is_exact_and_relu6_where_it_does_not_bend(scale):
    positive = ALL_CODES.clamp_min(0)
    assert torch.equal(activity_codes(INT8, ALL_CODES, torch.tensor(scale), "relu"), positive)
    six = activity_codes(INT8, ALL_CODES, torch.tensor(scale), "relu6")
    below = ALL_CODES.double() * scale < 6
    assert torch.equal(six[below], positive[below])
    # All that lies above six has one code, that of six.
    assert len(six[~below].unique()) <= 1


@every_activation
def test_slopes_are_those_of_autograd(activation):
    # Both corners among them.
    z = torch.cat([torch.linspace(-9, 9, 1801, dtype=torch.float64), torch.tensor([0.0, 6.0])])
    leaf = z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(FUNCTIONS[activation](leaf).sum(), leaf)
    found = activation_slope(z.float(), activation)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)


@every_activation
@pytest.mark.parametrize("precision", [INT8, FP32], ids=lambda p: p.name)
def test_a_feature_stands_for_its_activation(activation, precision):
    codes = ALL_CODES.view(1, 5, 17, 3)
    codes = codes if precision is INT8 else codes * 0.05
    feature = Feature(codes, torch.tensor(0.05 if precision is INT8 else 1.0), activation)
    wanted = FUNCTIONS[activation](ALL_CODES.view(codes.shape).double() * 0.05)
    tolerance = 0.05 / 2 if precision is INT8 else 0
    found = feature.dequantize(precision)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance + 1e-6)
    assert found.dtype == torch.float32
    assert torch.equal(feature.operand(precision) * feature.scale, found)


@every_activation
def test_codes_are_not_changed(activation):
    codes = ALL_CODES.clone()
    Feature(codes, torch.tensor(0.1), activation).dequantize(INT8)
    assert torch.equal(codes, ALL_CODES)
