"""Objectives: known values, the gradient autograd finds, and the one within the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from engines.heads import GroupHead, SquareHead
from engines.judging import judging_units
from engines.objective import ClassGoodness, ForwardForward
from tests import reference

# Two float64 computations of the same sums of at most 100 terms.
FLOAT64_RTOL = 1e-12
# Differences of nearly equal probabilities: an absolute floor for values near 1.
CLOSE = {"rtol": FLOAT64_RTOL, "atol": 1e-14}
THETA = 2.0


@st.composite
def class_batches(draw):
    """An objective, goodness float64 `[batch, C]` and labels."""
    classes = draw(st.integers(2, 12))
    batch = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    objective = ClassGoodness(classes, alpha=draw(st.sampled_from([1.0, 5.0])))
    goodness = torch.from_numpy(rng.normal(size=(batch, classes)) ** 2)
    return objective, goodness, torch.from_numpy(rng.integers(0, classes, batch))


def f64(*values: float):
    return torch.tensor(values, dtype=torch.float64)


def signs(batch: int):
    """Targets of a batch of two passes: positive rows, then negative ones."""
    return torch.cat([torch.ones(batch), -torch.ones(batch)]).double()


# --- class goodness ---------------------------------------------------------------------------


def test_loss_and_gradient_at_a_value_worked_by_hand():
    # alpha g = (0, ln 3): softmax (1/4, 3/4).
    goodness = f64(0.0, math.log(3) / 5)[None]
    loss, grad = ClassGoodness(2, alpha=5.0).loss(goodness, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(4), rel=FLOAT64_RTOL)
    assert grad[0].tolist() == pytest.approx([5 * (1 / 4 - 1), 5 * 3 / 4], rel=FLOAT64_RTOL)


def test_equal_goodness_costs_the_logarithm_of_the_classes_and_averages_over_the_batch():
    goodness = torch.ones(4, 10, dtype=torch.float64)
    loss, grad = ClassGoodness(10, alpha=5.0).loss(goodness, torch.tensor([3, 3, 0, 9]))
    assert loss.item() == pytest.approx(math.log(10), rel=FLOAT64_RTOL)
    assert grad[0, 3].item() == pytest.approx(5 * (0.1 - 1) / 4, rel=FLOAT64_RTOL)
    assert grad[0, 4].item() == pytest.approx(5 * 0.1 / 4, rel=FLOAT64_RTOL)


@given(class_batches())
def test_loss_and_gradient_equal_the_numpy_oracle(batch):
    objective, goodness, labels = batch
    loss, grad = objective.loss(goodness, labels)
    wanted_loss, wanted = reference.cross_entropy(goodness.numpy(), labels.numpy(), objective.alpha)
    np.testing.assert_allclose(loss, wanted_loss, **CLOSE)
    np.testing.assert_allclose(grad, wanted, **CLOSE)


@given(class_batches())
def test_gradient_equals_autograd(batch):
    objective, goodness, labels = batch
    leaf = goodness.clone().requires_grad_()
    loss = cross_entropy(objective.alpha * leaf, labels)
    (wanted,) = torch.autograd.grad(loss, leaf)
    found_loss, found = objective.loss(goodness, labels)
    torch.testing.assert_close(found_loss, loss.detach(), **CLOSE)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_a_step_against_the_gradient_raises_the_right_class_and_lowers_the_others():
    objective, head = ClassGoodness(5), GroupHead(5)
    y = torch.rand(40, 33, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 5
    before = head.goodness(y, {})
    _, grad = objective.loss(before, labels)
    change = head.goodness(y - 0.1 * head.grad_activity(grad, y, {}), {}) - before
    right = one_hot(labels, 5).bool()
    assert (change[right] > 0).all()
    assert (change[~right] < 0).all()


@pytest.mark.parametrize("label", [0, 1])
def test_extreme_goodness_stays_finite(label):
    goodness = torch.tensor([[1e9, 0.0]])
    loss, grad = ClassGoodness(2, alpha=5.0).loss(goodness, torch.tensor([label]))
    # Wrong by 1e9: the loss is the gap, the gradient stays bounded by alpha.
    assert loss.item() == (0 if label == 0 else 5e9)
    assert grad.abs().max().item() == (0 if label == 0 else 5)


def test_an_all_silent_unit_has_a_loss_and_no_gradient():
    objective, head = ClassGoodness(4), GroupHead(4)
    y = torch.zeros(3, 9)
    loss, grad = objective.loss(head.goodness(y, {}), torch.tensor([0, 1, 2]))
    assert loss.item() == pytest.approx(math.log(4), rel=1.3e-6)
    assert not head.grad_activity(grad, y, {}).any()


# --- the paper's objective --------------------------------------------------------------------


def test_eq_1_and_2_at_known_values():
    # G = theta: log 2 either way. G = theta + ln 3: log(4/3) for positive, log 4 for negative data.
    goodness = f64(THETA, THETA + math.log(3), THETA, THETA + math.log(3))
    loss, grad = ForwardForward(THETA).loss(goodness, signs(2))
    positive_loss = (math.log(2) + math.log(4 / 3)) / 2
    negative_loss = (math.log(2) + math.log(4)) / 2
    assert loss.item() == pytest.approx(positive_loss + negative_loss, rel=FLOAT64_RTOL)
    # -sigmoid(theta - G) / B and sigmoid(G - theta) / B.
    assert grad.tolist() == pytest.approx([-1 / 4, -1 / 8, 1 / 4, 3 / 8], rel=FLOAT64_RTOL)


@given(
    batch=st.integers(1, 9),
    threshold=st.sampled_from([0.5, 2.0, 1000.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_forward_forward_equals_eq_1_and_2_and_autograd(batch, threshold, seed):
    rng = np.random.default_rng(seed)
    goodness = threshold + rng.normal(scale=20, size=2 * batch)
    positive, negative = goodness[:batch], goodness[batch:]
    wanted_loss = reference.softplus(threshold - positive).mean()
    wanted_loss += reference.softplus(negative - threshold).mean()
    leaf = torch.from_numpy(goodness).requires_grad_()
    exponent = torch.cat([threshold - leaf[:batch], leaf[batch:] - threshold])
    # Exponents up to 100 or so: the naive form still holds in float64.
    naive = torch.log(1 + torch.exp(exponent)).sum() / batch
    (wanted,) = torch.autograd.grad(naive, leaf)

    loss, grad = ForwardForward(threshold).loss(leaf.detach(), signs(batch))

    np.testing.assert_allclose(loss, wanted_loss, **CLOSE)
    torch.testing.assert_close(grad, wanted, **CLOSE)


def test_the_order_of_the_rows_does_not_matter():
    goodness, targets = f64(0.3, 4.0, 1.0, 2.5), signs(2)
    order = torch.tensor([2, 0, 3, 1])
    loss, grad = ForwardForward().loss(goodness, targets)
    other_loss, other = ForwardForward().loss(goodness[order], targets[order])
    assert other_loss.item() == pytest.approx(loss.item(), rel=FLOAT64_RTOL)
    assert torch.equal(other, grad[order])


@pytest.mark.parametrize(
    ("goodness", "target", "loss", "slope"),
    [
        (1e9, 1, 0, 0),
        (1e9, -1, 1e9, 1),
        (0, 1, None, None),
        (0, -1, None, None),
        (-1e9, 1, 1e9, -1),
    ],
)
def test_extremes_are_finite_and_the_gradient_is_bounded(goodness, target, loss, slope):
    rows = torch.tensor([goodness, goodness], dtype=torch.float32)
    targets = torch.full((2,), float(target))
    found, grad = ForwardForward(THETA).loss(rows, targets)
    # At G = 0: softplus(+-theta), and theta / B away from an even chance.
    wanted = reference.softplus(target * THETA) if loss is None else loss
    wanted_slope = -target / (1 + math.exp(-target * THETA)) if slope is None else slope
    # Two rows of one sign: B = 1 of each pass, so this pass counts twice. float32 rounding.
    assert found.item() == pytest.approx(2 * wanted, rel=1.3e-6, abs=1e-30)
    assert grad.tolist() == pytest.approx([wanted_slope] * 2, rel=1.3e-6, abs=1e-30)
    assert grad.abs().max() <= 1


def test_a_step_raises_positive_and_lowers_negative_goodness():
    head, objective = SquareHead("mean"), ForwardForward(1.0)
    y = torch.rand(8, 20, generator=torch.Generator().manual_seed(3))
    before = head.goodness(y, {})
    _, grad = objective.loss(before, signs(4).float())
    change = head.goodness(y - 0.1 * head.grad_activity(grad, y, {}), {}) - before
    assert (change[:4] > 0).all()
    assert (change[4:] < 0).all()


# --- the one within the other -----------------------------------------------------------------


@pytest.mark.parametrize("goodness", [0.0, 0.5, 2.0, 3.5, 40.0, 1e9])
def test_two_classes_are_the_positive_and_negative_loss_of_the_paper(goodness):
    logits = f64(goodness, THETA).expand(2, 2)
    # Labels 0, 1: "positive" has the logit G, "negative" has theta.
    losses, grad = zip(
        *(ClassGoodness(2, alpha=1.0).loss(logits[:1], torch.tensor([c])) for c in (0, 1)),
        strict=True,
    )
    loss, wanted = ForwardForward(THETA).loss(f64(goodness, goodness), signs(1))

    close = {"rel": FLOAT64_RTOL, "abs": 1e-15}
    assert sum(losses).item() == pytest.approx(loss.item(), **close)
    assert [g[0, 0].item() for g in grad] == pytest.approx(wanted.tolist(), **close)
    # ... and both are Eq. 1-2 and their derivatives.
    eq_1, eq_2 = (reference.softplus(d) for d in (THETA - goodness, goodness - THETA))
    assert [part.item() for part in losses] == pytest.approx([eq_1, eq_2], **close)
    # exp(-softplus(-x)) = sigmoid(x), and cannot overflow.
    assert wanted.tolist() == pytest.approx([-np.exp(-eq_2), np.exp(-eq_1)], **close)


@pytest.mark.parametrize("objective", [ClassGoodness(2), ForwardForward()])
def test_the_arguments_are_not_changed(objective):
    forward = isinstance(objective, ForwardForward)
    goodness = torch.rand(4) if forward else torch.rand(4, 2)
    targets = torch.tensor([1.0, 1.0, -1.0, -1.0]) if forward else torch.tensor([0, 1, 1, 0])
    kept = goodness.clone(), targets.clone()
    objective.loss(goodness, targets)
    assert all(map(torch.equal, (goodness, targets), kept))


@pytest.mark.parametrize("objective", [ClassGoodness(2), ForwardForward()])
def test_one_graph_without_breaks(objective):
    forward = isinstance(objective, ForwardForward)
    goodness = torch.rand(4) if forward else torch.rand(4, 2)
    targets = torch.tensor([1.0, 1.0, -1.0, -1.0]) if forward else torch.tensor([0, 1, 1, 0])
    torch.compiler.reset()
    traced = torch.compile(objective.loss, backend="eager", fullgraph=True)
    wanted = objective.loss(goodness, targets)
    torch.testing.assert_close(traced(goodness, targets), wanted, rtol=0, atol=0)


# --- the answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "last", "judges"),
    [
        (4, None, [1, 2, 3]),
        (2, None, [1]),
        (1, None, [0]),
        (4, 1, [3]),
        (4, 2, [2, 3]),
        (1, 1, [0]),
    ],
)
def test_judging_units(units, last, judges):
    assert [*judging_units(units, last)] == judges


@pytest.mark.parametrize("last", [0, -1, 4])
def test_more_judges_than_units_or_none_are_refused(last):
    with pytest.raises(ValueError, match=f"the last {last} units cannot judge: there are 3"):
        judging_units(3, last)


def test_class_score_is_the_product_of_the_units_probabilities():
    one, two = f64(0.0, math.log(3) / 5)[None], f64(math.log(4) / 5, 0.0)[None]
    score = ClassGoodness(2, alpha=5.0).score([one, two])
    wanted = [math.log(1 / 4 * 4 / 5), math.log(3 / 4 * 1 / 5)]
    assert score[0].tolist() == pytest.approx(wanted, rel=FLOAT64_RTOL)
    # Each unit's logsumexp is the same for all classes, so the mean goodness has the same argmax.
    mean = torch.stack([one, two]).mean(dim=0)
    assert torch.equal(score.argmax(dim=1), mean.argmax(dim=1))


def test_forward_forward_score_is_the_summed_goodness():
    score = ForwardForward().score([torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 3.0]])])
    assert score.tolist() == [[6.0, 5.0]]
