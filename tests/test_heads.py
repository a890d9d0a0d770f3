"""Heads: known values, the gradients autograd finds, and pooling as torch has it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool2d

from engines.heads import (
    GroupHead,
    LinearHead,
    SquareHead,
    average_pool,
    average_pool_adjoint,
)
from tests import reference

# Two float64 computations of the same sums of at most a few thousand terms near 1.
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
DENSE, SQUARE_MAP, ODD_MAP, TINY_MAP = (13,), (8, 8, 7), (7, 14, 6), (2, 3, 6)
SHAPES = [DENSE, SQUARE_MAP, ODD_MAP, TINY_MAP]
HEADS = {
    "group": lambda shape: GroupHead(5),
    "linear": lambda shape: LinearHead(5, shape),
    "sum": lambda shape: SquareHead("sum"),
    "mean": lambda shape: SquareHead("mean"),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(head, dtype=torch.float64):
    """Parameters of a head, no longer zero."""
    return {n: random(*p.shape, seed=7, dtype=dtype) for n, p in head.first_parameters().items()}


# --- every head -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_equal_autograd(kind, shape):
    head = HEADS[kind](shape)
    y, parameters = random(3, *shape).relu(), filled(head)
    leaves = [t.clone().requires_grad_() for t in (y, *parameters.values())]
    goodness = head.goodness(leaves[0], dict(zip(parameters, leaves[1:], strict=True)))
    grad_goodness = random(*goodness.shape, seed=1)
    wanted = torch.autograd.grad(goodness, leaves, grad_goodness)
    found = head.grad_activity(grad_goodness, y, parameters)
    torch.testing.assert_close(found, wanted[0], **CLOSE)
    gradients = head.grad_parameters(grad_goodness, y)
    assert gradients.keys() == parameters.keys()
    for name, gradient in zip(parameters, wanted[1:], strict=True):
        torch.testing.assert_close(gradients[name], gradient, **CLOSE)


@pytest.mark.parametrize("shape", [DENSE, ODD_MAP])
@pytest.mark.parametrize("kind", HEADS)
def test_gradient_equals_central_differences(kind, shape):
    head = HEADS[kind](shape)
    y, parameters, direction = random(2, *shape), filled(head), random(2, *shape, seed=2)
    grad_goodness = random(*head.goodness(y, parameters).shape, seed=1)

    def loss(x):
        return (head.goodness(x, parameters) * grad_goodness).sum()

    # Goodness is at most quadratic, so that a central difference has no error but rounding.
    wanted = (loss(y + 0.5 * direction) - loss(y - 0.5 * direction)).item()
    found = (head.grad_activity(grad_goodness, y, parameters) * direction).sum().item()
    assert found == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize("shape", [DENSE, SQUARE_MAP])
@pytest.mark.parametrize("kind", HEADS)
def test_arguments_are_not_changed_and_float32_stays_float32(kind, shape):
    head = HEADS[kind](shape)
    y, parameters = random(3, *shape, dtype=torch.float32), filled(head, torch.float32)
    goodness = head.goodness(y, parameters)
    grad_goodness = torch.randn_like(goodness)
    arguments = [y, grad_goodness, *parameters.values()]
    kept = [t.clone() for t in arguments]
    results = [
        head.goodness(y, parameters),
        head.grad_activity(grad_goodness, y, parameters),
        *head.grad_parameters(grad_goodness, y).values(),
    ]
    assert all(map(torch.equal, arguments, kept))
    assert {t.dtype for t in results} == {torch.float32}
    results[1].zero_()  # memory of its own: the look-ahead adds to it
    assert torch.equal(grad_goodness, kept[1])


@pytest.mark.parametrize("shape", [DENSE, SQUARE_MAP, ODD_MAP])
@pytest.mark.parametrize("kind", HEADS)
def test_one_graph_without_breaks(kind, shape):
    head = HEADS[kind](shape)
    y, parameters = random(3, *shape, dtype=torch.float32), filled(head, torch.float32)

    def chain(y, parameters):
        goodness = head.goodness(y, parameters)
        error = head.grad_activity(goodness, y, parameters)
        return error, head.grad_parameters(goodness, y)

    torch.compiler.reset()  # else all heads count as recompilations of one chain, which are limited
    traced = torch.compile(chain, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(traced(y, parameters), chain(y, parameters), rtol=0, atol=0)


# --- group ------------------------------------------------------------------------------------


def test_goodness_is_the_mean_square_of_each_group():
    y = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 2.0]])
    assert GroupHead(2).goodness(y, {}).tolist() == [[2.5, 12.5], [0.0, 2.0]]


def test_uneven_groups_are_larger_first():
    head = GroupHead(3)
    assert head.group_sizes(8) == [3, 3, 2]
    y = torch.tensor([[3.0, 0.0, 0.0, 0.0, 6.0, 3.0, 1.0, 3.0]])
    assert head.goodness(y, {}).tolist() == [[3.0, 15.0, 5.0]]


def test_a_map_is_grouped_by_channels_and_averaged_over_pixels():
    # Two pixels, three channels, two classes: channels 0 and 1 against channel 2.
    y = torch.tensor([[[[1.0, 2.0, 3.0], [3.0, 4.0, 1.0]]]])
    assert GroupHead(2).goodness(y, {}).tolist() == [[(1 + 4 + 9 + 16) / 4, (9 + 1) / 2]]


def test_a_class_without_activities_is_refused():
    with pytest.raises(ValueError, match="4 activities cannot be shared among 5 classes"):
        GroupHead(5).goodness(torch.ones(2, 4), {})


@given(
    classes=st.integers(2, 12),
    spare=st.integers(0, 48),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_group_head_equals_the_numpy_oracle(classes, spare, batch, seed):
    rng = np.random.default_rng(seed)
    y = np.maximum(rng.normal(size=(batch, classes + spare)), 0)
    grad_goodness = rng.normal(size=(batch, classes))
    head, activity = GroupHead(classes), torch.from_numpy(y)
    goodness = head.goodness(activity, {})
    np.testing.assert_allclose(goodness, reference.class_goodness(y, classes), **CLOSE)
    found = head.grad_activity(torch.from_numpy(grad_goodness), activity, {})
    wanted = reference.class_goodness_pullback(grad_goodness, y)
    np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.parametrize("head", [GroupHead(2), SquareHead("sum"), SquareHead("mean")])
def test_silent_activities_get_no_gradient(head):
    y = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    grad = head.grad_activity(torch.ones_like(head.goodness(y, {})), y, {})
    assert (grad == 0).tolist() == [[True, False, True, False]]


# --- square -----------------------------------------------------------------------------------


def test_square_goodness_is_the_sum_or_the_mean_over_a_whole_sample():
    y = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]], [[[0.0, 0.0]], [[0.0, 2.0]]]])
    assert SquareHead("sum").goodness(y, {}).tolist() == [14.0, 4.0]
    assert SquareHead("mean").goodness(y, {}).tolist() == [3.5, 1.0]


# --- linear -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activity", "pooled"),
    [
        ((32, 32, 16), (4, 4, 16)),
        ((8, 8, 128), (4, 4, 128)),  # 2048 features just fit
        ((8, 8, 129), (2, 4, 129)),
        ((4, 4, 256), (2, 4, 256)),
        ((4, 4, 512), (2, 2, 512)),
        ((4, 4, 1024), (1, 2, 1024)),
        ((2, 2, 4096), (1, 1, 4096)),  # one pixel is the end of it
        ((2, 7, 8), (2, 4, 8)),
        ((3, 3, 300), (2, 3, 300)),
        ((1, 9, 1500), (1, 1, 1500)),
        ((5000,), (5000,)),
    ],
)
def test_pooling_keeps_to_4x4_and_2048_features(activity, pooled):
    head = LinearHead(3, activity)
    assert head.pooled_shape == pooled
    parameters = head.first_parameters()
    assert parameters["weight"].shape == (3, math.prod(pooled))
    assert head.goodness(torch.zeros(2, *activity), parameters).shape == (2, 3)


@pytest.mark.parametrize("shape", [SQUARE_MAP, ODD_MAP, TINY_MAP, (5, 31, 2), (4, 4, 3)])
def test_linear_goodness_is_adaptive_pooling_and_a_matrix(shape):
    head = LinearHead(5, shape)
    y, parameters = random(3, *shape), filled(head)
    pooled = adaptive_avg_pool2d(y.permute(0, 3, 1, 2), head.pooled_shape[:2])
    u = pooled.permute(0, 2, 3, 1).flatten(1)
    wanted = u @ parameters["weight"].t() + parameters["bias"]
    torch.testing.assert_close(head.goodness(y, parameters), wanted, **CLOSE)


@given(size=st.integers(1, 40), data=st.data())
def test_the_adjoint_of_pooling_is_its_transpose(size, data):
    places = data.draw(st.integers(1, size))
    pool = average_pool(torch.eye(size, dtype=torch.float64), 0, places)  # [places, size]
    assert pool.shape == (places, size)
    # Averages: every row sums to one.
    torch.testing.assert_close(pool.sum(dim=1), torch.ones_like(pool[:, 0]), **CLOSE)
    adjoint = average_pool_adjoint(torch.eye(places, dtype=torch.float64), 0, size)
    torch.testing.assert_close(adjoint, pool.t(), **CLOSE)


def test_a_new_linear_head_says_nothing_and_sends_no_error_but_learns():
    head = LinearHead(5, SQUARE_MAP)
    y, parameters = random(3, *SQUARE_MAP, dtype=torch.float32), head.first_parameters()
    grad_goodness = torch.ones(3, 5)
    assert not head.goodness(y, parameters).any()
    assert not head.grad_activity(grad_goodness, y, parameters).any()
    assert all(g.any() for g in head.grad_parameters(grad_goodness, y).values())


def test_a_linear_head_learns_to_tell_two_patterns_apart():
    head = LinearHead(2, (4, 4, 1))
    y = torch.zeros(2, 4, 4, 1)
    y[0, 0, 0] = y[1, 3, 3] = 1.0
    parameters = head.first_parameters()
    goodness = partial(head.goodness, y, parameters)
    for _ in range(50):
        error = torch.softmax(goodness(), dim=1) - torch.eye(2)
        for name, gradient in head.grad_parameters(error, y).items():
            parameters[name] -= gradient
    assert goodness().argmax(dim=1).tolist() == [0, 1]


@pytest.mark.parametrize("channels", [512, 640, 1280])
def test_an_error_shares_no_memory_between_its_elements(channels):
    """Above 512 channels an axis is pooled to one place; whoever gets the error writes over it."""
    head = LinearHead(3, (4, 4, channels))
    assert min(head.pooled_shape[:-1]) == (1 if channels > 512 else 2)
    parameters = {"weight": torch.randn(3, math.prod(head.pooled_shape)), "bias": torch.zeros(3)}
    grad = head.grad_activity(torch.randn(2, 3), torch.randn(2, 4, 4, channels), parameters)
    assert grad.is_contiguous()
    assert grad.untyped_storage().nbytes() == grad.numel() * 4
