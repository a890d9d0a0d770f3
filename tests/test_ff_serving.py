"""Served answers of `ff` networks: those of C separate passes, to the last bit, at less cost."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from engines import (
    Recipe,
    Weights,
    WeightsError,
    open_predict_engine,
    open_train_engine,
    weights_digest,
    weights_from_bytes,
    weights_to_bytes,
)
from engines.base import CANARY_ROWS
from engines.feature import Feature
from engines.fusion import Fusion
from engines.int8 import quantize
from engines.labels import append_labels
from engines.precision import PRECISIONS, Int8
from engines.predict_units import open_predict_unit
from models import ModelSpec
from tests.contracts import bits

CLASSES = 4
SPECS = {
    "dense": ModelSpec("mlp", (13,), CLASSES, (24, 17, 9), objective="ff"),
    "one unit": ModelSpec("mlp", (13,), CLASSES, (24,), objective="ff"),
    "image as a vector": ModelSpec("mlp", (2, 3, 5), CLASSES, (24, 17), objective="ff"),
    "resnet8": ModelSpec("resnet8", (2, 9, 7), CLASSES, width=0.5, objective="ff"),
    "mobilenet_v2": ModelSpec("mobilenet_v2", (1, 8, 8), CLASSES, width=0.125, objective="ff"),
}
LABEL_VALUE = 0.6
INT8 = PRECISIONS["int8"]


def samples(spec: ModelSpec, rows: int, seed: int = 0):
    """A sensor's offsets and units on every feature."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, spec.features)) * np.logspace(-2, 2, spec.features) + 7
    return x.reshape(rows, *spec.input_shape).astype(np.float32), rng.integers(0, CLASSES, rows)


def exported(spec: ModelSpec) -> Weights:
    engine = open_train_engine(spec, seed=1, recipe=Recipe(label_value=LABEL_VALUE))
    engine.standardize_from(samples(spec, 64)[0])
    for step in range(2):
        engine.train_step(*samples(spec, 16, step), learning_rate=1e-3, look_ahead_weight=0.3)
    return engine.export(classes=("a", "b", "c", "d"), version=2, parent=1, last_seq=9)


@pytest.fixture(scope="module", params=SPECS)
def weights(request) -> Weights:
    return exported(SPECS[request.param])


def naive(weights: Weights, x) -> np.ndarray:
    """Goodness `[batch, C]`: the label written into the codes, everything anew for each label."""
    spec = weights.spec
    arrays = {name: torch.from_numpy(array.copy()) for name, array in weights.arrays.items()}
    rows = torch.from_numpy(x).flatten(1)
    standard = ((rows - arrays["input.mean"]) / arrays["input.std"]).clamp(-4, 4)
    dense = spec.name == "mlp"
    if dense:
        standard /= standard.square().mean(dim=1, keepdim=True).add(1e-6).sqrt()
    else:
        standard = standard.view(-1, *spec.input_shape).permute(0, 2, 3, 1)
    scale = arrays["units.0.input_scale" if dense else "input.scale"]
    eager = Fusion("eager", "test")
    units = [
        open_predict_unit(
            unit,
            {n.removeprefix(f"units.{i}."): a for n, a in arrays.items() if f"units.{i}." in n},
            INT8,
            eager,
        )
        for i, unit in enumerate(spec.units)
    ]
    value = LABEL_VALUE * math.sqrt(standard.shape[-1])
    columns = []
    for label in range(CLASSES):
        labels = torch.full((len(x),), label)
        codes = quantize(append_labels(standard, labels, CLASSES, value), scale).codes
        answered = units[0].answer(units[0].accumulator(Feature(codes, scale)), scale)
        activities = [answered.activity]
        for unit in units[1:]:
            answered = unit.forward(answered.output)
            activities.append(answered.activity)
        columns.append(goodness(spec, activities))
    return torch.stack(columns, dim=1).numpy()


def goodness(spec: ModelSpec, activities):
    """Of the judging units: the paper's sum for dense ones, the mean for convolutions."""
    found = []
    for unit, activity in zip(spec.units, activities, strict=True):
        squares = activity.square().flatten(1)
        size = unit.linear.inputs if spec.name == "mlp" else squares.shape[1]
        found.append(squares.sum(dim=1) / size)
    judges = found[1:] or found
    return sum(judges) / len(judges)


def test_an_answer_is_that_of_a_pass_under_each_label_to_the_last_bit(weights):
    x, _ = samples(weights.spec, 21, seed=5)
    with open_predict_engine().open(weights) as engine:
        answer = engine.predict(x)
    np.testing.assert_array_equal(answer.goodness, naive(weights, x))
    np.testing.assert_array_equal(answer.class_index, answer.goodness.argmax(axis=1))
    assert len(np.unique(answer.goodness)) > 21 * (CLASSES - 1)  # the label is heard


def test_an_answer_does_not_depend_on_its_batch(weights, monkeypatch):
    x, _ = samples(weights.spec, 7)
    with open_predict_engine().open(weights) as engine:
        whole = engine.predict(x).goodness
        single = np.concatenate([engine.predict(x[i : i + 1]).goodness for i in range(7)])
        np.testing.assert_array_equal(single, whole)
        monkeypatch.setattr(engine._network.units, "_most", 2)  # rows at a time
        np.testing.assert_array_equal(engine.predict(x).goodness, whole)


def test_an_empty_batch_has_no_answers(weights):
    with open_predict_engine().open(weights) as engine:
        answer = engine.predict(samples(weights.spec, 0)[0])
    assert answer.goodness.shape == (0, CLASSES)
    assert answer.class_index.shape == (0,)


def test_the_first_layer_multiplies_a_sample_once_and_a_label_once_a_version(monkeypatch):
    weights, multiplied = exported(SPECS["dense"]), []
    linear = Int8.linear

    def count(self, a, w):
        multiplied.append((len(a), *w.shape))
        return linear(self, a, w)

    monkeypatch.setattr(Int8, "linear", count)
    with open_predict_engine().open(weights) as engine:
        assert multiplied == [(CLASSES, 24, 13 + CLASSES)]
        for _ in range(2):
            multiplied.clear()
            engine.predict(samples(weights.spec, 6)[0])
            assert multiplied == [
                (6, 24, 13 + CLASSES),
                (6 * CLASSES, 17, 24),
                (6 * CLASSES, 9, 17),
            ]


def test_classes_that_are_not_in_use_do_not_answer():
    weights = dataclasses.replace(exported(SPECS["dense"]), classes=("a", "b"))
    with open_predict_engine().open(weights) as engine:
        answer = engine.predict(samples(weights.spec, 50)[0])
    np.testing.assert_array_equal(answer.class_index, answer.goodness[:, :2].argmax(axis=1))
    assert (answer.goodness.argmax(axis=1) > 1).any()


# --- weights ------------------------------------------------------------------------------------


def test_weights_survive_their_file(weights):
    content = weights_to_bytes(weights)
    read = weights_from_bytes(content)
    assert (read.spec, read.classes) == (weights.spec, weights.classes)
    assert read.spec.objective == "ff"
    assert bits(read.arrays) == bits(weights.arrays)
    assert weights_digest(read) == weights_digest(weights)


def test_the_canary_agrees(weights):
    canary = weights.arrays["canary.input"].reshape(CANARY_ROWS, *weights.spec.input_shape)
    with open_predict_engine().open(weights) as engine:
        found = engine.predict(canary).goodness
    np.testing.assert_array_equal(found, weights.arrays["canary.goodness"])


def test_what_a_labels_place_holds_is_in_the_weights(weights):
    assert weights.arrays["input.label_value"] == np.float32(LABEL_VALUE)
    assert not any(name.startswith("head.") for name in weights.arrays)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "'input.label_value' holds a value that is not positive"),
        (-1.0, "'input.label_value' holds a value that is not positive"),
        (np.nan, "'input.label_value' holds a value that is not finite"),
    ],
)
def test_a_labels_place_that_says_nothing_is_refused(weights, value, message):
    arrays = {**weights.arrays, "input.label_value": np.array(value, dtype=np.float32)}
    with pytest.raises(WeightsError, match=message):
        dataclasses.replace(weights, arrays=arrays).check()


def test_weights_of_the_other_objective_are_refused(weights):
    spec = dataclasses.replace(weights.spec, objective="class_goodness")
    with pytest.raises(WeightsError, match=r"not expected: .*input\.label_value"):
        dataclasses.replace(weights, spec=spec).check()
