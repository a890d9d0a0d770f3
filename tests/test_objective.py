"""Class goodness: known values, the gradient autograd finds, and the paper's losses within it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from engines.objective import ClassGoodness
from tests import reference

# Two float64 computations of the same sums of at most 100 terms.
FLOAT64_RTOL = 1e-12


@st.composite
def batches(draw):
    """An objective, activities float64 `[batch, width]` and labels, classes rarely dividing."""
    classes = draw(st.integers(2, 12))
    width = draw(st.integers(classes, 60))
    batch = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = torch.from_numpy(np.maximum(rng.normal(size=(batch, width)), 0))
    labels = torch.from_numpy(rng.integers(0, classes, batch))
    return ClassGoodness(classes, alpha=draw(st.sampled_from([1.0, 5.0]))), y, labels


# --- known values -----------------------------------------------------------------------------


def test_goodness_is_the_mean_square_of_each_group():
    y = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 2.0]])
    assert ClassGoodness(2).goodness(y).tolist() == [[2.5, 12.5], [0.0, 2.0]]


def test_uneven_groups_are_larger_first():
    objective = ClassGoodness(3)
    assert objective.group_sizes(8).tolist() == [3, 3, 2]
    y = torch.tensor([[3.0, 0.0, 0.0, 0.0, 6.0, 3.0, 1.0, 3.0]])
    assert objective.goodness(y).tolist() == [[3.0, 15.0, 5.0]]


def test_loss_and_gradient_at_a_value_worked_by_hand():
    # alpha g = (0, ln 3): softmax (1/4, 3/4).
    goodness = torch.tensor([[0.0, math.log(3) / 5]], dtype=torch.float64)
    loss, grad = ClassGoodness(2, alpha=5.0).loss(goodness, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(4), rel=FLOAT64_RTOL)
    assert grad[0].tolist() == pytest.approx([5 * (1 / 4 - 1), 5 * 3 / 4], rel=FLOAT64_RTOL)


def test_equal_goodness_costs_the_logarithm_of_the_classes_and_averages_over_the_batch():
    goodness = torch.ones(4, 10, dtype=torch.float64)
    loss, grad = ClassGoodness(10, alpha=5.0).loss(goodness, torch.tensor([3, 3, 0, 9]))
    assert loss.item() == pytest.approx(math.log(10), rel=FLOAT64_RTOL)
    assert grad[0, 3].item() == pytest.approx(5 * (0.1 - 1) / 4, rel=FLOAT64_RTOL)
    assert grad[0, 4].item() == pytest.approx(5 * 0.1 / 4, rel=FLOAT64_RTOL)


# --- gradient ---------------------------------------------------------------------------------


@given(batches())
def test_loss_and_gradient_equal_the_numpy_oracle(batch):
    objective, y, labels = batch
    goodness = objective.goodness(y)
    loss, grad = objective.loss(goodness, labels)
    g = reference.class_goodness(y.numpy(), objective.classes)
    wanted_loss, wanted = reference.cross_entropy(g, labels.numpy(), objective.alpha)
    wanted_y = reference.class_goodness_pullback(wanted, y.numpy())
    # Differences of nearly equal probabilities: an absolute floor of 1e-14 for values near 1.
    close = {"rtol": FLOAT64_RTOL, "atol": 1e-14}
    np.testing.assert_allclose(goodness, g, **close)
    np.testing.assert_allclose(loss, wanted_loss, **close)
    np.testing.assert_allclose(grad, wanted, **close)
    # grad_activity takes 2 / n_c in float32, whose rounding is 2^-24.
    np.testing.assert_allclose(objective.grad_activity(grad, y), wanted_y, rtol=1.3e-6, atol=1e-14)


@given(batches())
def test_gradient_equals_autograd(batch):
    objective, y, labels = batch
    y = y.requires_grad_()
    parts = torch.tensor_split(y, objective.classes, dim=1)
    goodness = torch.stack([part.square().mean(dim=1) for part in parts], dim=1)
    loss = cross_entropy(objective.alpha * goodness, labels)
    (wanted,) = torch.autograd.grad(loss, y)
    y = y.detach()
    found_loss, grad_goodness = objective.loss(objective.goodness(y), labels)
    torch.testing.assert_close(found_loss, loss.detach(), rtol=FLOAT64_RTOL, atol=1e-14)
    found = objective.grad_activity(grad_goodness, y)
    torch.testing.assert_close(found, wanted, rtol=1.3e-6, atol=1e-14)


def test_silent_activities_get_no_gradient():
    objective = ClassGoodness(2)
    y = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    _, grad = objective.loss(objective.goodness(y), torch.tensor([1]))
    silent = objective.grad_activity(grad, y) == 0
    assert silent.tolist() == [[True, False, True, False]]


def test_a_step_against_the_gradient_raises_the_right_class_and_lowers_the_others():
    objective = ClassGoodness(5)
    y = torch.rand(40, 33, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 5
    before = objective.goodness(y)
    _, grad = objective.loss(before, labels)
    change = objective.goodness(y - 0.1 * objective.grad_activity(grad, y)) - before
    right = torch.nn.functional.one_hot(labels, 5).bool()
    assert (change[right] > 0).all()
    assert (change[~right] < 0).all()


def test_the_arguments_are_not_changed():
    objective = ClassGoodness(3)
    y, labels = torch.rand(4, 7), torch.tensor([0, 1, 2, 0])
    goodness = objective.goodness(y)
    kept = y.clone(), goodness.clone(), labels.clone()
    _, grad = objective.loss(goodness, labels)
    kept_grad = grad.clone()
    objective.grad_activity(grad, y)
    assert all(map(torch.equal, (y, goodness, labels, grad), (*kept, kept_grad)))


# --- the paper's two losses -------------------------------------------------------------------

THETA = 2.0


@pytest.mark.parametrize("goodness", [0.0, 0.5, 2.0, 3.5, 40.0, 1e9])
def test_two_classes_are_the_positive_and_negative_loss_of_the_paper(goodness):
    logits = torch.tensor([[goodness, THETA]], dtype=torch.float64)
    objective = ClassGoodness(2, alpha=1.0)

    positive_loss, positive_grad = objective.loss(logits, torch.tensor([0]))
    negative_loss, negative_grad = objective.loss(logits, torch.tensor([1]))

    # FF-INT8 (arXiv 2506.22771v1) Eq. 1-2 and their derivatives with respect to G.
    eq_1, eq_2 = (reference.softplus(d) for d in (THETA - goodness, goodness - THETA))
    sigmoid = np.exp(-eq_1)  # of G - theta: exp(-softplus(-x)) = sigmoid(x), and cannot overflow
    one_minus_sigmoid = np.exp(-eq_2)
    close = {"rel": FLOAT64_RTOL, "abs": 1e-15}
    assert positive_loss.item() == pytest.approx(eq_1, **close)
    assert negative_loss.item() == pytest.approx(eq_2, **close)
    assert positive_grad[0, 0].item() == pytest.approx(-one_minus_sigmoid, **close)
    assert negative_grad[0, 0].item() == pytest.approx(sigmoid, **close)


# --- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 1])
def test_extreme_goodness_stays_finite(label):
    goodness = torch.tensor([[1e9, 0.0]])
    loss, grad = ClassGoodness(2, alpha=5.0).loss(goodness, torch.tensor([label]))
    # Wrong by 1e9: the loss is the gap, the gradient stays bounded by alpha.
    assert loss.item() == (0 if label == 0 else 5e9)
    assert grad.abs().max().item() == (0 if label == 0 else 5)


def test_an_all_silent_unit_has_a_loss_and_no_gradient():
    objective = ClassGoodness(4)
    y = torch.zeros(3, 9)
    loss, grad = objective.loss(objective.goodness(y), torch.tensor([0, 1, 2]))
    assert loss.item() == pytest.approx(math.log(4), rel=1.3e-6)
    assert not objective.grad_activity(grad, y).any()
