"""What a trial's recipe becomes in each method, and the words that stand for data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.backprop.method import Backprop
from benchmarks.datasets import DIGIT_IMAGES, DIGITS, load
from benchmarks.methods import ForwardForwardInt8
from benchmarks.samples import label_samples
from benchmarks.trial import LinearSpec, Trial, TrialError
from models.pooling import pooled_shape

LABELS = np.arange(48) % 3
IMAGES = np.random.default_rng(1).normal(size=(48, 1, 8, 8)).astype(np.float32)
SAMPLES = label_samples(IMAGES + LABELS[:, None, None, None].astype(np.float32), LABELS, "made up")


def trial(**changes: object) -> Trial:
    fields = {
        "method": "ff-int8", "model": "mlp", "data": "made up", "epochs": 1, "batch": 24,
        "hidden": (20, 17), "learning_rate": 1e-2, "fusion": "eager",
    }  # fmt: skip
    return Trial(**(fields | changes))


def built(asked: Trial) -> Backprop | ForwardForwardInt8:
    kind = ForwardForwardInt8 if asked.method.startswith("ff-") else Backprop
    method = kind(asked, asked.spec(SAMPLES.x.shape[1:], 3), SAMPLES)
    method.start_step(0.0)
    return method


@pytest.mark.parametrize(
    ("changes", "form", "masters"),
    [
        ({}, "exact", "float32"),
        ({"model": "resnet8", "width": 0.5}, "discounted", "float32"),
        ({"look_ahead_form": "discounted", "masters": "int8"}, "discounted", "int8"),
    ],
)
def test_forward_forward_says_what_it_took_from_the_recipe(changes, form, masters):
    settings = built(trial(**changes, window=1)).settings
    assert settings == {
        "fusion": "eager", "masters": masters, "look_ahead": [0.2, 1.6],
        "look_ahead_form": form, "window": 1,
    }  # fmt: skip


def test_two_passes_have_their_own_recipe():
    method = built(
        trial(method="ff-int8-two-pass", threshold=5.0, label_value=8.0, negatives="hard")
    )
    own = {"threshold": 5.0, "label_value": 8.0, "negatives": "hard"}
    assert method.settings == built(trial()).settings | own
    assert method.parameters == (64 + 3) * 20 + 20 + 20 * 17 + 17
    losses = [method.step(SAMPLES.x, SAMPLES.labels) for _ in range(5)]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("fusion", "asked", "masters"),
    [("compiled", None, "int16"), ("compiled", "float32", "float32"), ("eager", None, "float32")],
)
def test_masters_are_small_where_the_chains_are_compiled(monkeypatch, fusion, asked, masters):
    from benchmarks import methods
    from engines.fusion import Fusion

    class Engine:
        def standardize_from(self, x: np.ndarray) -> None:
            """As the real one, which would try the compiler."""

    recipes = []
    monkeypatch.setattr(methods, "open_fusion", lambda name: Fusion(fusion, "a test"))
    monkeypatch.setattr(
        methods.engines,
        "open_train_engine",
        lambda spec, seed, recipe: recipes.append(recipe) or Engine(),
    )
    assert built(trial(masters=asked, fusion="auto")).settings["masters"] == masters
    (recipe,) = recipes
    assert (recipe.masters, recipe.fusion) == (masters, fusion)


def test_the_recipe_changes_what_is_learned():
    """Form, window, masters, decay and optimizer each reach the engine."""
    weights = {}
    for name, changes in {
        "plain": {},
        "again": {},
        "form": {"look_ahead_form": "discounted"},
        "window": {"window": 0},
        "masters": {"masters": "int16"},
        "decay": {"weight_decay": 0.9},
        "optimizer": {"optimizer": "sgd"},
    }.items():
        method = built(trial(hidden=(20, 17, 15), look_ahead=(0.7, 0.7), **changes))
        for _ in range(3):
            method.step(SAMPLES.x, SAMPLES.labels)
        weights[name] = method.export(SAMPLES.classes).arrays["units.0.weight.codes"].tobytes()
    assert weights.pop("again") == weights["plain"]
    assert len(set(weights.values())) == len(weights)


def test_parameters_of_units_and_of_every_head_count():
    asked = trial(model="resnet8", width=0.5)
    spec = asked.spec((1, 8, 8), 3)
    heads = [math.prod(pooled_shape(unit.output_shape)) * 3 + 3 for unit in spec.units]
    assert built(asked).parameters == spec.parameters + sum(heads)


@pytest.mark.parametrize("method", ["bp-fp32", "bp-int8", "bp-int8-strong", "bp-gdai8-like"])
def test_without_a_hidden_layer_back_propagation_is_a_linear_classifier(method):
    asked = trial(method=method, hidden=())
    assert asked.spec((1, 8, 8), 3) == LinearSpec((1, 8, 8), 3)
    classifier = built(asked)
    assert classifier.parameters == 64 * 3 + 3
    losses = [classifier.step(SAMPLES.x, SAMPLES.labels) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_without_a_hidden_layer_there_is_no_unit():
    with pytest.raises(TrialError, match="hidden"):
        trial(hidden=()).spec((1, 8, 8), 3)
    with pytest.raises(TrialError, match="hidden layer"):
        ForwardForwardInt8(trial(), LinearSpec((1, 8, 8), 3), SAMPLES)


def test_sgd_is_torch_s_with_momentum():
    learner = built(trial(method="bp-fp32", optimizer="sgd"))
    (group, *_) = learner._optimizer.param_groups
    assert isinstance(learner._optimizer, torch.optim.SGD)
    assert group["momentum"] == 0.9


def test_digits_come_as_rows_or_as_images():
    rows, images = load(DIGITS), load(DIGIT_IMAGES)
    assert images.x.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(images.x.reshape(-1, 64), rows.x)
    np.testing.assert_array_equal(images.labels, rows.labels)
