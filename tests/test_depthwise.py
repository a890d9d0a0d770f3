"""Depthwise convolutions in integers: exact, and without a break for torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.depthwise import depthwise_forward, depthwise_grad_input, depthwise_grad_weight
from engines.im2col import ConvGeometry
from models.spec import CONTRACTION_MAX
from tests import conv_reference as reference

seeds = st.integers(0, 2**32 - 1)
batches = st.integers(1, 4)
geometries = reference.geometries(depthwise=True)


def operands(g: ConvGeometry, batch: int, seed: int):
    """Codes of input, weight and error."""
    rng = np.random.default_rng(seed)
    a = reference.random_codes(rng, batch, *g.in_size, g.in_channels)
    w = reference.random_codes(rng, g.in_channels, g.kernel**2)
    e = reference.random_codes(rng, batch, *g.out_size, g.in_channels)
    return a, w, e


def tensors(*arrays):
    return [torch.from_numpy(array.copy()) for array in arrays]


# --- exactness --------------------------------------------------------------------------------


@given(g=geometries, batch=batches, seed=seeds)
def test_forward_equals_the_int64_oracle_exactly(g, batch, seed):
    a, w, _ = operands(g, batch, seed)
    given_a, given_w = tensors(a, w)
    found = depthwise_forward(given_a, given_w, g)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_forward(a, w, g))
    np.testing.assert_array_equal(given_a.numpy(), a)
    np.testing.assert_array_equal(given_w.numpy(), w)


@given(g=geometries, batch=batches, seed=seeds)
def test_weight_gradient_equals_the_int64_oracle_exactly(g, batch, seed):
    a, _, e = operands(g, batch, seed)
    given_e, given_a = tensors(e, a)
    found = depthwise_grad_weight(given_e, given_a, g)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_grad_weight(e, a, g))
    np.testing.assert_array_equal(given_e.numpy(), e)
    np.testing.assert_array_equal(given_a.numpy(), a)


@given(g=geometries, batch=batches, seed=seeds)
def test_input_gradient_equals_the_int64_oracle_exactly(g, batch, seed):
    _, w, e = operands(g, batch, seed)
    given_e, given_w = tensors(e, w)
    found = depthwise_grad_input(given_e, given_w, g)
    assert found.dtype == torch.int32
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_grad_input(e, w, g))
    np.testing.assert_array_equal(given_e.numpy(), e)
    np.testing.assert_array_equal(given_w.numpy(), w)


@given(g=geometries, batch=batches, seed=seeds)
def test_both_gradients_are_adjoint_to_the_forward_product(g, batch, seed):
    a, w, e = tensors(*operands(g, batch, seed))
    product = (depthwise_forward(a, w, g).long() * e.long()).sum()
    assert product == (a.long() * depthwise_grad_input(e, w, g).long()).sum()
    assert product == (w.long() * depthwise_grad_weight(e, a, g).long()).sum()


@given(g=geometries, batch=batches, seed=seeds)
@pytest.mark.parametrize("least", [0, 5])
def test_the_activation_makes_the_operand_and_leaves_the_padding_zero(least, g, batch, seed):
    a, w, e = operands(g, batch, seed)
    given_a, given_w, given_e = tensors(a, w, e)
    operand = np.maximum(a, np.int8(least))

    def activation(codes):
        return codes.clamp_min(least)

    found = depthwise_forward(given_a, given_w, g, activation=activation)
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_forward(operand, w, g))
    found = depthwise_grad_weight(given_e, given_a, g, activation=activation)
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_grad_weight(e, operand, g))
    np.testing.assert_array_equal(given_a.numpy(), a)


# --- torch.compile ----------------------------------------------------------------------------


def all_three(a, w, e, g: ConvGeometry):
    return (
        depthwise_forward(a, w, g),
        depthwise_grad_weight(e, a, g),
        depthwise_grad_input(e, w, g),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_one_graph_without_a_break(stride):
    g = ConvGeometry(3, stride, 1, (5, 6), 10, 10)
    torch._dynamo.reset()
    # aot_eager: traced as for inductor, but run without a C++ compiler.
    compiled = torch.compile(all_three, backend="aot_eager", fullgraph=True, dynamic=False)
    given = tensors(*operands(g, 2, seed=1))
    for found, wanted in zip(compiled(*given, g), all_three(*given, g), strict=True):
        assert found.dtype == torch.int32
        assert torch.equal(found, wanted)


# --- overflow and refusals --------------------------------------------------------------------


def full(*shape: int, value: int = 127):
    return torch.full(shape, value, dtype=torch.int8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("batch", "side"), [(1, CONTRACTION_MAX), (CONTRACTION_MAX // 8, 8)])
def test_the_longest_weight_gradient_of_the_largest_codes_does_not_overflow(batch, side, sign):
    g = ConvGeometry(1, 1, 0, (side, 1), 1, 1)
    found = depthwise_grad_weight(
        full(batch, side, 1, 1), full(batch, side, 1, 1, value=127 * sign), g
    )
    assert found.item() == sign * 127 * 127 * CONTRACTION_MAX


@pytest.mark.parametrize(("batch", "side"), [(1, CONTRACTION_MAX + 1), (3, 50_000)])
def test_a_longer_weight_gradient_is_refused(batch, side):
    g = ConvGeometry(1, 1, 0, (side, 1), 1, 1)
    with pytest.raises(ValueError, match=rf"contraction over {batch * side} .* limit is 133144"):
        depthwise_grad_weight(full(batch, side, 1, 1), full(batch, side, 1, 1), g)


def test_a_geometry_that_is_not_depthwise_is_refused():
    g = ConvGeometry(3, 1, 1, (4, 4), 8, 16)
    with pytest.raises(ValueError, match="as many channels out as in, got 8 in and 16 out"):
        depthwise_forward(full(1, 4, 4, 8), full(8, 9), g)
    with pytest.raises(ValueError, match="as many channels out as in"):
        depthwise_grad_weight(full(1, 4, 4, 16), full(1, 4, 4, 8), g)
    with pytest.raises(ValueError, match="as many channels out as in"):
        depthwise_grad_input(full(1, 4, 4, 16), full(8, 9), g)


@pytest.mark.parametrize("wrong", ["input", "weight", "error"])
def test_operands_that_are_not_int8_or_do_not_fit_are_refused(wrong):
    g = ConvGeometry(3, 1, 1, (4, 4), 8, 8)
    a, w, e = tensors(*operands(g, 2, seed=2))
    good = {"input": a, "weight": w, "error": e}
    for bad, kind, message in (
        (good[wrong].float(), TypeError, f"{wrong} must be int8 codes, got torch.float32"),
        (good[wrong][..., :-1], ValueError, rf"{wrong} has shape \[.*\], wanted \["),
    ):
        a, w, e = (good | {wrong: bad}).values()
        products = {
            "input weight": lambda a=a, w=w: depthwise_forward(a, w, g),
            "error input": lambda a=a, e=e: depthwise_grad_weight(e, a, g),
            "error weight": lambda w=w, e=e: depthwise_grad_input(e, w, g),
        }
        used = [product for name, product in products.items() if wrong in name]
        assert len(used) == 2
        for product in used:
            with pytest.raises(kind, match=message):
                product()
