"""Objective `ff`: what a batch becomes, and that each unit gets the gradient of Eq. 1-4.

FF-INT8, arXiv 2506.22771v1. In fp32 the engine must match autograd through the plain model, with
losses written out as the paper has them; in int8 the same path must learn.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

import engines.rule
from engines import Optimizer, Recipe, open_predict_engine
from engines.feature import Feature
from engines.labels import hard_wrong_labels, wrong_labels
from engines.optim import FloatMasters
from engines.precision import PRECISIONS
from engines.rounding import NoiseKey
from engines.rule import Draw, open_rule
from engines.torch_train import TorchTrainEngine
from models import ModelSpec
from models.build import build_model
from tests import reference
from tests.contracts import bits

# No two sizes alike, so that a sum divided by the wrong one shows.
SPEC = ModelSpec("mlp", (11,), 5, (23, 17, 31), objective="ff")
CONV = ModelSpec("resnet8", (2, 8, 8), 3, width=0.5, objective="ff")
SEED, UNITS, LABEL = 4, len(SPEC.hidden), 0.9
# Float32 sums of at most 31 products through three units, against float64.
GRADIENT_TOLERANCE = 1e-5


def samples(rows: int, spec: ModelSpec = SPEC, seed: int = 0):
    """A cloud for each class."""
    centres = np.random.default_rng(99).normal(size=(spec.max_classes, *spec.input_shape))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, spec.max_classes, rows)
    x = 1.5 * centres[labels] + rng.normal(size=(rows, *spec.input_shape))
    return np.clip(x, -3.9, 3.9).astype(np.float32), labels  # the engine clips at 4


# --- gradients ----------------------------------------------------------------------------------


@pytest.fixture
def gradients(monkeypatch):
    """Gradients of each unit as they reach its optimizer, which then takes its step."""
    weights: list[np.ndarray] = []
    biases: dict[str, np.ndarray] = {}
    step = FloatMasters.step

    def record(self, gradients, learning_rate):
        for name, gradient in gradients.items():
            if name == "weight":
                weights.insert(0, gradient.numpy().copy())  # the sweep begins at the last unit
            else:
                biases[name] = gradient.numpy().copy()
        step(self, gradients, learning_rate)

    monkeypatch.setattr(FloatMasters, "step", record)
    return weights, biases


def autograd(x, labels, wrong, *, threshold: float, goodness: str, weight: float):
    """float64 losses, and `dL_new/d(weight, bias)` of each unit, through the plain model."""
    x = torch.from_numpy(x).double()
    x = x / x.square().mean(dim=1, keepdim=True).add(reference.LENGTH_EPSILON).sqrt()
    model = build_model(SPEC, SEED).double()

    def units_goodness(labels):
        rows = torch.zeros(len(x), 11 + 5, dtype=torch.float64)
        rows[:, :11] = x
        rows[torch.arange(len(x)), 11 + labels] = LABEL * 11**0.5
        squares = [y.square().sum(dim=1) for y in model(rows)]
        sizes = SPEC.hidden if goodness == "mean" else [unit[0] for unit in SPEC.unit_sizes]
        return [square / size for square, size in zip(squares, sizes, strict=True)]

    losses = []
    passes = units_goodness(torch.from_numpy(labels)), units_goodness(wrong)
    for positive, negative in zip(*passes, strict=True):
        eq1 = torch.log(1 + torch.exp(-(positive - threshold)))
        eq2 = torch.log(1 + torch.exp(negative - threshold))
        losses.append(eq1.mean() + eq2.mean())
    found = []
    for index, unit in enumerate(model.units):
        loss = losses[index] + weight * sum(losses[index + 1 :])
        parameters = [unit.linear.weight, unit.linear.bias]
        found.append(torch.autograd.grad(loss, parameters, retain_graph=True))
    return [loss.item() for loss in losses], found


@pytest.mark.parametrize("goodness", ["sum", "mean"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_every_unit_gets_the_gradient_of_the_papers_losses(gradients, goodness, weight):
    x, labels = samples(19)
    recipe = Recipe("fp32", threshold=1.5, goodness=goodness, label_value=LABEL)
    engine = TorchTrainEngine(SPEC, seed=SEED, recipe=recipe)
    # A rate that wrecks the weights: a gradient taken through updated ones would show.
    report = engine.train_step(x, labels, learning_rate=1.0, look_ahead_weight=weight)

    wrong = wrong_labels(torch.from_numpy(labels), 5, NoiseKey(SEED, 0, -1))
    losses, wanted = autograd(x, labels, wrong, threshold=1.5, goodness=goodness, weight=weight)
    np.testing.assert_allclose(report.losses, losses, rtol=GRADIENT_TOLERANCE)
    weights, biases = gradients
    assert len(weights) == UNITS
    for index, (weight_gradient, bias_gradient) in enumerate(wanted):
        for found, gradient in (
            (weights[index], weight_gradient),
            (biases[f"units.{index}.bias"], bias_gradient),
        ):
            error = reference.relative_error(found, gradient.numpy())
            assert error < GRADIENT_TOLERANCE, f"unit {index}"


def test_auto_is_the_sum_for_dense_units_and_the_mean_for_convolutions():
    for spec, name in ((SPEC, "sum"), (CONV, "mean")):
        assert open_rule(spec, Recipe()) == open_rule(spec, Recipe(goodness=name))
    assert open_rule(SPEC, Recipe()) != open_rule(SPEC, Recipe(goodness="mean"))


def test_the_papers_goodness_is_the_sum_of_squares_for_an_input_of_unit_length():
    activity = torch.rand(3, 23)  # behind inputs of length sqrt(16): of length 1, a fourth of it
    head = open_rule(SPEC, Recipe()).heads[0]
    paper = (activity / 4).square().sum(dim=1)
    torch.testing.assert_close(head.goodness(activity, {}), paper)


# --- what a batch becomes -----------------------------------------------------------------------


def batch_of(spec: ModelSpec, recipe: Recipe, codes, labels, draw: Draw):
    precision = PRECISIONS[recipe.precision]
    return open_rule(spec, recipe).batch(
        precision, Feature(codes, torch.tensor(0.05)), torch.from_numpy(labels), None, draw
    )


@pytest.mark.parametrize("shape", [(11,), (8, 8, 2)])
def test_each_sample_passes_with_its_label_and_with_a_wrong_one(shape):
    spec = SPEC if len(shape) == 1 else CONV
    codes = torch.randint(-127, 128, (40, *shape), dtype=torch.int8)
    labels = np.arange(40) % 3
    draw = Draw(3, NoiseKey(1, 2, 3), lambda: pytest.fail("uniform negatives ask nobody"))
    label_value = 4.03 / math.sqrt(shape[-1])
    rows, targets, places = batch_of(spec, Recipe(label_value=label_value), codes, labels, draw)
    assert places is None
    label_planes = rows.codes[..., shape[-1] :].reshape(80, -1, spec.max_classes)
    assert rows.codes.dtype == torch.int8
    assert torch.equal(rows.codes[..., : shape[-1]], torch.cat([codes, codes]))
    assert (label_planes == label_planes[:, :1]).all()  # the same at every pixel
    assert set(label_planes.unique().tolist()) == {0, 81}  # round(4.03 / 0.05)
    shown = label_planes[:, 0].argmax(dim=1)
    assert (label_planes[:, 0] != 0).sum(dim=1).eq(1).all()
    assert torch.equal(shown[:40], torch.from_numpy(labels))
    assert (shown[40:] != shown[:40]).all()
    assert shown.max() == 2  # of the class places in use
    assert targets.tolist() == [1.0] * 40 + [-1.0] * 40


@pytest.mark.parametrize("spec", [SPEC, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("label_value", [0.1, 50.0])
def test_the_first_scale_holds_samples_and_label_whatever_the_label(spec, label_value):
    shape = (11,) if spec is SPEC else (8, 8, 2)
    x = torch.randn(30, *shape)
    rule = open_rule(spec, Recipe(label_value=label_value))
    prepared = rule.prepare(x)
    label = torch.tensor(label_value * math.sqrt(shape[-1]))
    assert rule.absmax(prepared) == torch.maximum(prepared.abs().max(), label)


def test_rows_of_a_dense_network_have_equal_lengths_before_the_label():
    x = torch.randn(30, 11) * torch.logspace(-1, 2, 30)[:, None]
    prepared = open_rule(SPEC, Recipe()).prepare(x)
    torch.testing.assert_close(prepared.square().mean(dim=1), torch.ones(30), rtol=1e-3, atol=0)
    image = torch.randn(3, 8, 8, 2)
    assert torch.equal(open_rule(CONV, Recipe()).prepare(image), image)  # batch norm follows


def test_wrong_labels_are_of_classes_that_were_seen(monkeypatch):
    seen = []

    def record(labels, classes, key, places):
        seen.append((classes, key))
        return wrong_labels(labels, classes, key, places)

    monkeypatch.setattr(engines.rule, "wrong_labels", record)
    engine = TorchTrainEngine(SPEC, seed=SEED, recipe=Recipe())
    x, _ = samples(4)
    for labels in ([0, 0, 0, 0], [0, 3, 1, 0], [1, 0, 0, 0]):
        engine.train_step(x, np.array(labels), learning_rate=0.01, look_ahead_weight=0.0)
    # One class alone has no wrong label; so the second is taken before it is seen.
    assert seen == [
        (2, NoiseKey(SEED, 0, -1)),
        (4, NoiseKey(SEED, 1, -1)),
        (4, NoiseKey(SEED, 2, -1)),
    ]


# --- hard negatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, CONV], ids=["dense", "conv"])
def test_hard_negatives_are_drawn_from_what_the_network_would_answer(spec, monkeypatch):
    asked = []

    def record(goodness, labels, key):
        asked.append(goodness)
        return hard_wrong_labels(goodness, labels, key)

    monkeypatch.setattr(engines.rule, "hard_wrong_labels", record)
    engine = TorchTrainEngine(spec, seed=SEED, recipe=Recipe(negatives="hard"))
    engine.standardize_from(samples(64, spec)[0])
    step = {"learning_rate": 0.01, "look_ahead_weight": 0.3}
    engine.train_step(*samples(24, spec), **step)
    assert asked == []  # nothing is known yet: the first draw is uniform
    for number in range(3):
        x, labels = samples(24, spec, seed=number)
        weights = engine.export(classes=(0, 1, 2), version=1, parent=None, last_seq=0)
        engine.train_step(x, labels, **step)
        with open_predict_engine().open(weights) as served:
            wanted = served.predict(x).goodness
        np.testing.assert_array_equal(asked[-1].numpy(), wanted)
    assert len(asked) == 3


def test_hard_negatives_see_classes_in_use_only(monkeypatch):
    shapes = []

    def record(goodness, labels, key):
        shapes.append(tuple(goodness.shape))
        return hard_wrong_labels(goodness, labels, key)

    monkeypatch.setattr(engines.rule, "hard_wrong_labels", record)
    engine = TorchTrainEngine(SPEC, seed=SEED, recipe=Recipe(negatives="hard"))
    x, _ = samples(4)
    for labels in ([0, 1, 0, 1], [0, 1, 0, 1], [0, 3, 1, 0]):
        engine.train_step(x, np.array(labels), learning_rate=0.01, look_ahead_weight=0.0)
    assert shapes == [(4, 2), (4, 4)]


# --- learning -----------------------------------------------------------------------------------


def trained(spec: ModelSpec, recipe: Recipe, steps: int, seed: int = SEED) -> TorchTrainEngine:
    engine = TorchTrainEngine(spec, seed=seed, recipe=recipe)
    engine.standardize_from(samples(64, spec)[0])
    for step in range(steps):
        x, labels = samples(32, spec, seed=step)
        engine.train_step(x, labels, learning_rate=5e-3, look_ahead_weight=0.3)
    return engine


RECIPES = {
    "int8": Recipe(),
    "fp32": Recipe("fp32"),
    "hard": Recipe(negatives="hard"),
    "int8 masters": Recipe(masters="int8", optimizer=Optimizer("sgd")),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("spec", [SPEC, CONV], ids=["dense", "conv"])
def test_same_seed_same_bits_and_a_resumed_run_goes_on_as_if_never_stopped(spec, recipe):
    engine, again = trained(spec, recipe, 3), trained(spec, recipe, 3)
    assert bits(engine.state()) == bits(again.state())
    assert bits(engine.state()) != bits(trained(spec, recipe, 3, seed=SEED + 1).state())
    fresh = TorchTrainEngine(spec, seed=SEED, recipe=recipe)
    fresh.load_state(engine.state())
    x, labels = samples(32, spec, seed=50)
    labels[:] = labels % 2  # so that the classes in use must come from the state
    for each in (engine, fresh):
        each.train_step(x, labels, learning_rate=5e-3, look_ahead_weight=0.3)
    assert bits(engine.state()) == bits(fresh.state())


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
@pytest.mark.parametrize("spec", [SPEC, CONV], ids=["dense", "conv"])
def test_two_classes_are_told_apart(spec, negatives):
    two = dataclasses.replace(spec, max_classes=2)
    engine = trained(two, Recipe(negatives=negatives), 40)
    weights = engine.export(classes=("a", "b"), version=1, parent=None, last_seq=0)
    x, labels = samples(200, two, seed=1000)
    with open_predict_engine().open(weights) as served:
        right = (served.predict(x).class_index == labels).mean()
    assert right > 0.97  # the clouds are 1.5 * sqrt(2 * 11) = 7 deviations apart


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"goodness": "max"}, "goodness 'max' is unknown; known: auto, sum, mean"),
        ({"negatives": "easy"}, "negatives 'easy' is unknown; known: uniform, hard"),
        ({"threshold": 0.0}, "threshold is 0.0; wanted above 0, and finite"),
        ({"threshold": float("nan")}, "threshold is nan; wanted above 0, and finite"),
        ({"label_value": -1.0}, "label value is -1.0; wanted above 0, and finite"),
        ({"label_value": float("inf")}, "label value is inf; wanted above 0, and finite"),
    ],
)
def test_what_a_recipe_refuses_is_named(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe(**fields)


def test_the_sum_over_a_convolution_is_refused():
    with pytest.raises(ValueError, match=r"goodness 'sum' of a convolution .* wanted 'mean'"):
        TorchTrainEngine(CONV, seed=1, recipe=Recipe(goodness="sum"))
