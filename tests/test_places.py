"""Places, which a row's loss tells apart: the others get no gradient, in any unit of any network.

ER-ACE, Caccia et al. 2022 (arXiv 2104.05025). What a training engine promises of them is in
tests/test_engine_contract.py; of latents, in tests/test_latents.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engines.rule
from engines import LookAhead, Recipe, open_train_engine
from engines.heads import GroupHead, LinearHead
from engines.labels import hard_wrong_labels, two_passes, wrong_labels
from engines.objective import ClassGoodness, ForwardForward
from engines.rounding import NoiseKey
from tests import reference
from tests.contracts import bits
from tests.networks import CLASSES, NETWORKS, SGD, TINY, Twin, batch_of, opened, sgd_gradients

KEY = NoiseKey(seed=7, step=3, tensor=1)
DRAWS = 60_000


def places_of(rng, labels, classes: int, share: float = 0.5):
    """At random, the label's own always among them."""
    places = rng.random((len(labels), classes)) < share
    places[np.arange(len(labels)), labels] = True
    return places


@st.composite
def masked_batches(draw):
    """An objective, goodness float64 `[batch, C]`, labels and places."""
    classes, batch = draw(st.integers(2, 12)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, classes, batch)
    places = places_of(rng, labels, classes, draw(st.sampled_from([0.0, 0.3, 0.9])))
    objective = ClassGoodness(classes, alpha=draw(st.sampled_from([1.0, 5.0])))
    return objective, *map(
        torch.from_numpy, (rng.normal(size=(batch, classes)) ** 2, labels, places)
    )


# --- the loss -----------------------------------------------------------------------------------


@given(masked_batches())
def test_the_gradient_is_the_slope_of_the_loss(batch):
    objective, goodness, labels, places = batch
    _, grad = objective.loss(goodness, labels, places)
    step = 1e-5
    for row, place in np.ndindex(*goodness.shape):
        nudged = [goodness.clone(), goodness.clone()]
        nudged[0][row, place] += step
        nudged[1][row, place] -= step
        up, down = (objective.loss(g, labels, places)[0].item() for g in nudged)
        # Central differences: an error of step^2 alpha^3, and the rounding of the loss by the step.
        assert grad[row, place].item() == pytest.approx((up - down) / (2 * step), abs=1e-7)


@given(masked_batches())
def test_a_row_is_told_apart_as_if_the_other_classes_did_not_exist(batch):
    objective, goodness, labels, places = batch
    loss, grad = objective.loss(goodness, labels, places)
    alone = []
    for row, (label, kept) in enumerate(zip(labels.tolist(), places, strict=True)):
        label_among_kept = torch.tensor([kept[:label].sum()])
        own_loss, own_grad = objective_of(objective, kept).loss(
            goodness[row : row + 1, kept], label_among_kept
        )
        alone.append(own_loss.item())
        np.testing.assert_allclose(grad[row, kept], own_grad[0] / len(labels), atol=1e-14)
        assert (grad[row, ~kept] == 0).all()
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-12, abs=1e-14)


def objective_of(objective: ClassGoodness, kept) -> ClassGoodness:
    return ClassGoodness(int(kept.sum()), objective.alpha)


@pytest.mark.parametrize("elsewhere", [0.0, 1e9, torch.inf])
def test_whatever_a_place_left_out_holds_changes_nothing(elsewhere):
    goodness, places = torch.tensor([[1.0, elsewhere, 2.0]]), torch.tensor([[True, False, True]])
    loss, grad = ClassGoodness(3).loss(goodness, torch.tensor([0]), places)
    wanted_loss, wanted = ClassGoodness(2).loss(goodness[:, [0, 2]], torch.tensor([0]))
    assert loss == wanted_loss
    assert grad[0, [0, 2]].tolist() == wanted[0].tolist()
    assert grad[0, 1] == 0


@given(masked_batches())
def test_all_places_are_none(batch):
    objective, goodness, labels, places = batch
    for found, wanted in zip(
        objective.loss(goodness, labels, torch.ones_like(places)),
        objective.loss(goodness, labels),
        strict=True,
    ):
        assert torch.equal(found, wanted)


@given(masked_batches(), st.booleans())
def test_places_left_out_by_all_rows_get_no_gradient_through_a_head(batch, linear):
    objective, _, labels, places = batch
    classes, rows = objective.classes, len(labels)
    generator = torch.Generator().manual_seed(classes)
    activity = torch.rand(rows, 2 * classes + 1, generator=generator)
    head = LinearHead(classes, (2 * classes + 1,)) if linear else GroupHead(classes)
    parameters = {
        name: torch.randn(first.shape, generator=generator)
        for name, first in head.first_parameters().items()
    }
    _, grad = objective.loss(head.goodness(activity, parameters), labels, places)
    left_out = ~places.any(dim=0)
    for gradient in head.grad_parameters(grad, activity).values():
        assert (gradient[left_out] == 0).all()
    if not linear:  # a class's activities are its own
        error = head.grad_activity(grad, activity, parameters)
        of_class = torch.arange(classes).repeat_interleave(
            torch.tensor(head.group_sizes(error.shape[1]))
        )
        assert (error[~places[:, of_class]] == 0).all()


# --- every unit of every network ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "weight"), [*((name, 0.6) for name in NETWORKS), ("mlp", 0.0)])
def test_everything_that_learns_gets_the_gradient_of_the_masked_losses_own_and_later(name, weight):
    spec = NETWORKS[name]
    x, labels = batch_of(spec, 12)
    places = places_of(np.random.default_rng(3), labels, CLASSES)
    places[:, 1] &= labels == 1  # and as with new samples: their classes alone
    engine = opened(spec, "fp32", LookAhead())
    losses, wanted = Twin(spec, engine.state()).gradients(
        (x, labels), lambda unit, later: 1.0 if later == unit else weight, places
    )
    found_losses, found = sgd_gradients(engine, (x, labels), weight, places)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-4)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        # As in tests/test_train_gradients.py.
        tolerance = 1e-3 if "squeeze_excite" in parameter else 1e-4
        assert reference.relative_error(found[parameter], gradient) < tolerance, parameter


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["mlp", "resnet8"]),
    precision=st.sampled_from(["int8", "fp32"]),
    kept=st.sets(st.integers(0, CLASSES - 1), min_size=1),
    seed=st.integers(0, 99),
)
def test_no_parameter_of_a_place_left_out_moves(name, precision, kept, seed):
    spec = TINY[name]
    x, labels = batch_of(spec, 8, seed)
    labels = np.array(sorted(kept))[labels % len(kept)]
    places = np.zeros((8, CLASSES), np.bool_)
    places[:, sorted(kept)] = True
    _, gradients = sgd_gradients(opened(spec, precision, LookAhead()), (x, labels), 0.0, places)
    for parameter, gradient in gradients.items():
        if name == "mlp":  # without look-ahead a row of weights moves by its own class's goodness
            owner = np.concatenate(
                [np.full(len(g), c) for c, g in enumerate(np.array_split(gradient, CLASSES))]
            )
        elif parameter.startswith("heads"):
            owner = np.arange(CLASSES)
        else:
            continue
        assert not gradient[~np.isin(owner, sorted(kept))].any(), parameter
        assert len(kept) == 1 or gradient[np.isin(owner, sorted(kept))].any(), parameter


@pytest.mark.parametrize("name", [name for name in TINY if name != "mlp"])
def test_a_network_learns_as_one_that_has_the_places_kept_and_no_others(name):
    """Behind linear heads, which start at zero, no unit depends on how many classes there are."""
    wide = TINY[name]
    narrow = dataclasses.replace(wide, max_classes=3)
    places = np.broadcast_to(np.arange(CLASSES) < 3, (9, CLASSES))
    states = []
    for spec, own in ((wide, places), (narrow, None)):
        recipe = dataclasses.replace(SGD, precision="fp32")
        engine = open_train_engine(spec, seed=4, recipe=recipe)
        for step in range(3):
            batch = batch_of(narrow, 9, seed=step)
            report = engine.train_step(
                *batch, learning_rate=0.05, look_ahead_weight=0.5, places=own
            )
        states.append(engine.state() | {"losses": np.array(report.losses)})
    for key, wanted in states[1].items():
        found = states[0][key]
        if key.startswith("parameters.heads") and wanted.ndim:  # and no count of steps
            assert not found[3:].any(), key
            found = found[:3]
        # Sums over classes have two zeros more, which may change their order: the last bits.
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5, err_msg=key)


# --- wrong labels -------------------------------------------------------------------------------


@given(
    classes=st.integers(2, 40),
    batch=st.integers(1, 50),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    hard=st.booleans(),
)
def test_a_wrong_label_is_another_of_the_rows_places_or_there_is_none(
    classes, batch, share, seed, hard
):
    rng, key = np.random.default_rng(seed), NoiseKey(seed, 0, 0)
    labels = rng.integers(0, classes, batch)
    places = places_of(rng, labels, classes, share)
    goodness = rng.normal(scale=1e4, size=(batch, classes)).astype(np.float32)
    given = [torch.from_numpy(array.copy()) for array in (goodness, labels, places)]
    if hard:
        wrong = hard_wrong_labels(given[0], given[1], key, given[2]).numpy()
    else:
        wrong = wrong_labels(given[1], 2, key, given[2]).numpy()  # whatever is in use
    assert wrong.dtype == np.int64
    assert places[np.arange(batch), wrong].all()
    np.testing.assert_array_equal(wrong == labels, places.sum(axis=1) == 1)
    for array, tensor in zip((goodness, labels, places), given, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


@given(classes=st.integers(2, 20), in_use=st.integers(2, 20), seed=st.integers(0, 999))
def test_all_places_in_use_draw_what_none_draws(classes, in_use, seed):
    in_use = min(classes, in_use)
    rng, key = np.random.default_rng(seed), NoiseKey(seed, 0, 0)
    labels = torch.from_numpy(rng.integers(0, in_use, 30))
    places = (torch.arange(classes) < in_use).expand(30, classes)
    goodness = torch.from_numpy(rng.normal(size=(30, classes)))
    assert torch.equal(wrong_labels(labels, in_use, key, places), wrong_labels(labels, in_use, key))
    found = hard_wrong_labels(goodness, labels, key, places)
    assert torch.equal(found, hard_wrong_labels(goodness[:, :in_use], labels, key))


def test_among_a_rows_places_draws_are_uniform_and_hard_ones_by_softmax():
    labels = torch.full((DRAWS,), 2)
    places = torch.tensor([True, False, True, True, False, True]).expand(DRAWS, 6)
    counts = wrong_labels(labels, 6, KEY, places).bincount(minlength=6).numpy()
    # 4 sigma of a share; the key is fixed, so the outcome is too.
    sigma = np.sqrt(1 / 3 * 2 / 3 / DRAWS)
    np.testing.assert_allclose(counts / DRAWS, np.array([1, 0, 0, 1, 0, 1]) / 3, atol=4 * sigma)
    goodness = torch.tensor([1.0, 1e9, 1e9, 3.0, 5.0, 2.0]).log().expand(DRAWS, 6)
    counts = hard_wrong_labels(goodness, labels, KEY, places).bincount(minlength=6).numpy()
    wanted = np.array([1, 0, 0, 3, 0, 2]) / 6
    assert (np.abs(counts / DRAWS - wanted) <= 4 * np.sqrt(1 / 4 / DRAWS)).all()


def test_a_row_without_a_target_has_a_loss_and_no_gradient():
    goodness, targets = torch.tensor([0.5, 3.0, 0.1, 9.0]), torch.tensor([1.0, 0.0, -1.0, -0.0])
    loss, grad = ForwardForward().loss(goodness, targets)
    wanted, wanted_grad = ForwardForward().loss(goodness[[0, 2]], targets[[0, 2]])
    assert (grad[[1, 3]] == 0).all()
    assert grad[[0, 2]].tolist() == (wanted_grad / 2).tolist()
    assert loss.item() == pytest.approx((wanted.item() + 2 * np.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
def test_under_ff_the_labels_shown_are_of_the_rows_places(negatives, monkeypatch):
    shown = []

    def record(x, labels, wrong, classes, label_value):
        shown.append((labels.numpy(), wrong.numpy()))
        return two_passes(x, labels, wrong, classes, label_value)

    monkeypatch.setattr(engines.rule, "two_passes", record)
    spec = dataclasses.replace(NETWORKS["mlp"], objective="ff")
    engine = open_train_engine(spec, seed=4, recipe=Recipe(negatives=negatives))
    rng = np.random.default_rng(0)
    for step in range(4):
        x, labels = batch_of(spec, 40, seed=step)
        labels %= 3
        places = places_of(rng, labels, CLASSES, 0.4)
        engine.train_step(x, labels, learning_rate=0.01, look_ahead_weight=0.3, places=places)
        right, wrong = shown[-1]
        assert places[np.arange(40), wrong].all()
        np.testing.assert_array_equal(wrong == right, places.sum(axis=1) == 1)
        assert wrong.max() > 2  # a place may be told apart from before its first sample


@pytest.mark.parametrize("objective", ["class_goodness", "ff"])
def test_rows_with_no_place_but_their_own_teach_nothing(objective):
    spec = dataclasses.replace(NETWORKS["mlp"], objective=objective)
    engine = open_train_engine(spec, seed=4, recipe=SGD)
    x, labels = batch_of(spec, 12)
    own = np.arange(CLASSES) == labels[:, None]
    before = engine.state()
    engine.train_step(x, labels, learning_rate=0.1, look_ahead_weight=0.5, places=own)
    after = engine.state()
    weights = [name for name in before if name.endswith((".weight", ".bias"))]
    assert len(weights) == 2 * len(spec.units)
    assert bits({n: after[n] for n in weights}) == bits({n: before[n] for n in weights})
