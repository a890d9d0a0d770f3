"""Depthwise convolutions in integers: exact, eager and compiled."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as shape_config
from hypothesis import given
from hypothesis import strategies as st

from engines.depthwise import DepthwiseConv
from engines.fusion import Fusion
from models.layers import ConvLayer
from models.spec import CONTRACTION_MAX
from tests import conv_reference as reference

seeds = st.integers(0, 2**32 - 1)
batches = st.integers(1, 4)
depthwise_layers = reference.conv_layers(depthwise=True)

EAGER = Fusion("eager", "a test")


def operands(g: ConvLayer, batch: int, seed: int):
    """Codes of input, weight and error."""
    rng = np.random.default_rng(seed)
    a = reference.random_codes(rng, batch, *g.in_size, g.in_channels)
    w = reference.random_codes(rng, g.in_channels, g.kernel**2)
    e = reference.random_codes(rng, batch, *g.out_size, g.in_channels)
    return a, w, e


def tensors(*arrays):
    return [torch.from_numpy(array.copy()) for array in arrays]


# --- exactness --------------------------------------------------------------------------------


@given(g=depthwise_layers, batch=batches, seed=seeds)
def test_forward_equals_the_int64_oracle_exactly(g, batch, seed):
    a, w, _ = operands(g, batch, seed)
    given_a, given_w = tensors(a, w)
    found = DepthwiseConv(g, EAGER).forward(given_a, given_w)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_forward(a, w, g))
    np.testing.assert_array_equal(given_a.numpy(), a)
    np.testing.assert_array_equal(given_w.numpy(), w)


@given(g=depthwise_layers, batch=batches, seed=seeds)
def test_weight_gradient_equals_the_int64_oracle_exactly(g, batch, seed):
    a, _, e = operands(g, batch, seed)
    given_e, given_a = tensors(e, a)
    found = DepthwiseConv(g, EAGER).grad_weight(given_e, given_a)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_grad_weight(e, a, g))
    np.testing.assert_array_equal(given_e.numpy(), e)
    np.testing.assert_array_equal(given_a.numpy(), a)


@given(g=depthwise_layers, batch=batches, seed=seeds)
def test_input_gradient_equals_the_int64_oracle_exactly(g, batch, seed):
    _, w, e = operands(g, batch, seed)
    given_e, given_w = tensors(e, w)
    found = DepthwiseConv(g, EAGER).grad_input(given_e, given_w)
    assert found.dtype == torch.int32
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), reference.depthwise_grad_input(e, w, g))
    np.testing.assert_array_equal(given_e.numpy(), e)
    np.testing.assert_array_equal(given_w.numpy(), w)


@given(g=depthwise_layers, batch=batches, seed=seeds)
def test_both_gradients_are_adjoint_to_the_forward_product(g, batch, seed):
    a, w, e = tensors(*operands(g, batch, seed))
    forward, grad_weight, grad_input = all_three(a, w, e, g)
    product = (forward.long() * e.long()).sum()
    assert product == (a.long() * grad_input.long()).sum()
    assert product == (w.long() * grad_weight.long()).sum()


def all_three(a, w, e, g: ConvLayer, fusion: Fusion = EAGER):
    conv = DepthwiseConv(g, fusion)
    return conv.forward(a, w), conv.grad_weight(e, a), conv.grad_input(e, w)


# --- torch.compile ----------------------------------------------------------------------------


def depthwise(channels: int, in_size: tuple[int, int], kernel: int = 3, stride: int = 1):
    return ConvLayer(channels, channels, kernel, stride, True, "none", in_size)


class Traced(Fusion):
    """Traces a chain as torch.compile does, without the seconds that a C++ compiler takes."""

    def fuse(self, chain):
        return torch.compile(chain, backend=graphs(), fullgraph=True, dynamic=True)


@functools.cache
def graphs():
    from torch._dynamo.testing import CompileCounter  # seconds, in every worker that collects

    return CompileCounter()


def test_one_graph_a_product_serves_every_size():
    sizes = (2, 10, (6, 8)), (3, 10, (6, 8)), (2, 24, (4, 5)), (5, 33, (7, 7))
    torch.compiler.reset()
    graphs().clear()
    with shape_config.patch(use_duck_shape=False):
        for batch, channels, size in sizes:
            g = depthwise(channels, size, stride=2)
            given = tensors(*operands(g, batch, seed=1))
            found = all_three(*given, g, Traced("compiled", "a test"))
            for ours, plain in zip(found, all_three(*given, g), strict=True):
                assert ours.dtype == torch.int32
                assert torch.equal(ours, plain)
    assert graphs().frame_count == 3


# --- overflow and refusals --------------------------------------------------------------------


def full(*shape: int, value: int = 127):
    return torch.full(shape, value, dtype=torch.int8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("batch", "side"), [(1, CONTRACTION_MAX), (CONTRACTION_MAX // 8, 8)])
def test_the_longest_weight_gradient_of_the_largest_codes_does_not_overflow(batch, side, sign):
    conv = DepthwiseConv(depthwise(1, (side, 1), kernel=1), EAGER)
    found = conv.grad_weight(full(batch, side, 1, 1), full(batch, side, 1, 1, value=127 * sign))
    assert found.item() == sign * 127 * 127 * CONTRACTION_MAX


@pytest.mark.parametrize(("batch", "side"), [(1, CONTRACTION_MAX + 1), (3, 50_000)])
def test_a_longer_weight_gradient_is_refused(batch, side):
    conv = DepthwiseConv(depthwise(1, (side, 1), kernel=1), EAGER)
    with pytest.raises(ValueError, match=rf"contraction over {batch * side} .* limit is 133144"):
        conv.grad_weight(full(batch, side, 1, 1), full(batch, side, 1, 1))


@pytest.mark.parametrize("wrong", ["input", "weight", "error"])
def test_operands_that_are_not_int8_or_do_not_fit_are_refused(wrong):
    g = depthwise(8, (4, 4))
    conv = DepthwiseConv(g, EAGER)
    a, w, e = tensors(*operands(g, 2, seed=2))
    good = {"input": a, "weight": w, "error": e}
    for bad, kind, message in (
        (good[wrong].float(), TypeError, f"{wrong} must be int8 codes, got torch.float32"),
        (good[wrong][..., :-1], ValueError, rf"{wrong} has shape \[.*\], wanted \["),
    ):
        a, w, e = (good | {wrong: bad}).values()
        products = {
            "input weight": lambda a=a, w=w: conv.forward(a, w),
            "error input": lambda a=a, e=e: conv.grad_weight(e, a),
            "error weight": lambda w=w, e=e: conv.grad_input(e, w),
        }
        used = [product for name, product in products.items() if wrong in name]
        assert len(used) == 2
        for product in used:
            with pytest.raises(kind, match=message):
                product()
