"""Weights that must not serve are refused, and the refusal names what is wrong."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from engines import Weights, WeightsError, open_predict_engine, open_train_engine
from engines.base import expected_arrays
from models import ModelSpec

SPEC = ModelSpec("mlp", (6,), 3, (9, 8))


@pytest.fixture(scope="module")
def healthy() -> Weights:
    learner = open_train_engine(SPEC, seed=1)
    return learner.export(classes=("a", "b", "c"), version=1, parent=None, last_seq=0)


def with_array(weights: Weights, name: str, array) -> Weights:
    return dataclasses.replace(weights, arrays={**weights.arrays, name: array})


def with_element(weights: Weights, name: str, value) -> Weights:
    array = weights.arrays[name].copy()
    array[(-1,) * array.ndim] = value
    return with_array(weights, name, array)


def refused(weights: Weights, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        weights.check()
    # An engine asks before it serves.
    with pytest.raises(WeightsError, match=message):
        open_predict_engine("torch").open(weights)


def test_healthy_weights_pass(healthy):
    healthy.check()
    with_element(healthy, "units.0.weight.codes", -127).check()
    dataclasses.replace(healthy, classes=()).check()


@pytest.mark.parametrize("name", expected_arrays(SPEC))
def test_a_missing_array_is_named(healthy, name):
    arrays = {key: array for key, array in healthy.arrays.items() if key != name}
    refused(dataclasses.replace(healthy, arrays=arrays), f"missing or not expected: {name}$")


def test_an_array_too_many_is_named(healthy):
    refused(with_array(healthy, "units.2.bias", np.zeros(3)), "not expected: units.2.bias$")


@pytest.mark.parametrize("name", expected_arrays(SPEC))
def test_another_dtype_is_named(healthy, name):
    wider = healthy.arrays[name].astype(np.float64)
    dtype = healthy.arrays[name].dtype
    refused(with_array(healthy, name, wider), f"'{name}' is float64 .* the model needs {dtype}")


@pytest.mark.parametrize("name", expected_arrays(SPEC))
def test_another_shape_is_named(healthy, name):
    array = healthy.arrays[name]
    shape = re.escape(str([1, *array.shape]))
    refused(with_array(healthy, name, array[None]), f"'{name}' is {array.dtype} {shape}, the model")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", [name for name, (dtype, _) in expected_arrays(SPEC).items() if dtype is np.float32]
)
def test_a_value_that_is_not_finite_is_refused(healthy, name, value):
    refused(with_element(healthy, name, value), f"'{name}' holds a value that is not finite")


@pytest.mark.parametrize("unit", [0, 1])
def test_the_code_minus_128_is_refused(healthy, unit):
    name = f"units.{unit}.weight.codes"
    refused(with_element(healthy, name, -128), f"'{name}' holds the code -128")


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name", ["input.std", "units.0.weight.scale", "units.1.weight.scale", "units.1.input_scale"]
)
def test_a_scale_that_is_not_positive_is_refused(healthy, name, value):
    refused(with_element(healthy, name, value), f"'{name}' holds a scale that is not positive")


def test_more_classes_than_places_are_refused(healthy):
    refused(dataclasses.replace(healthy, classes=tuple("abcd")), "4 classes, places for 3")


def test_a_network_that_has_diverged_is_not_exported():
    learner = open_train_engine(SPEC, seed=1)
    x = np.eye(4, 6, dtype=np.float32)
    step = {"learning_rate": 1e38, "look_ahead_weight": 0.5}
    learner.train_step(x, np.array([0, 1, 2, 0]), **step)
    with pytest.raises(WeightsError, match="not finite"):
        learner.export(classes=("a",), version=1, parent=None, last_seq=0)


def test_readings_as_large_as_floats_go_leave_a_finite_canary():
    """A sensor may send float32's largest value for "no reading"."""
    largest = np.finfo(np.float32).max
    x = np.random.default_rng(0).choice([-largest, 0, largest], (40, 6)).astype(np.float32)
    learner = open_train_engine(SPEC, seed=1)
    learner.standardize_from(x)
    learner.train_step(x[:4], np.array([0, 1, 2, 0]), learning_rate=1e-3, look_ahead_weight=0.5)
    weights = learner.export(classes=("a",), version=1, parent=None, last_seq=0)
    assert np.isfinite(weights.arrays["canary.input"]).all()


# --- networks of convolutions -------------------------------------------------------------------

CONV = ModelSpec("efficientnet_b0", (2, 4, 4), 3, width=0.1)


@pytest.fixture(scope="module")
def healthy_conv() -> Weights:
    return open_train_engine(CONV, seed=1).export(classes=(), version=1, parent=None, last_seq=0)


def one_of_each_kind() -> list[str]:
    """The first array of every ending: a layer's, a gate's, a sum's, the head's."""
    kinds: dict[str, str] = {}
    for name in expected_arrays(CONV):
        kinds.setdefault(re.sub(r"units\.\d+\.", "", name), name)
    return [*kinds.values()]


def test_every_kind_of_array_is_there():
    endings = {name.split(".", 2)[-1] for name in one_of_each_kind() if name.startswith("units")}
    parts = ("conv", "expand", "depthwise", "project")
    layer = ("weight.codes", "weight.scale", "bias", "output_scale")
    wanted = {f"{part}.{array}" for part in parts for array in layer} | {"sum.output_scale"}
    wanted |= {f"squeeze_excite.{fc}.{a}" for fc in ("fc1", "fc2") for a in ("weight", "bias")}
    assert endings == wanted | {"squeeze_excite.output_scale"}
    assert {"head.weight", "head.bias", "input.scale"} < {*expected_arrays(CONV)}
    residual = expected_arrays(ModelSpec("resnet8", (2, 4, 4), 3, width=0.5))
    assert {"units.2.shortcut.weight.codes", "units.1.sum.output_scale"} < residual.keys()
    assert "units.1.shortcut.weight.codes" not in residual


@pytest.mark.parametrize("name", one_of_each_kind())
def test_every_kind_of_array_is_checked(healthy_conv, name):
    arrays = {key: array for key, array in healthy_conv.arrays.items() if key != name}
    refused(dataclasses.replace(healthy_conv, arrays=arrays), f"not expected: {re.escape(name)}$")
    array = healthy_conv.arrays[name]
    refused(with_array(healthy_conv, name, array[None]), f"'{re.escape(name)}' is .*, the model")
    if array.dtype == np.int8:
        refused(with_element(healthy_conv, name, -128), f"'{name}' holds the code -128")
        return
    refused(with_element(healthy_conv, name, np.nan), f"'{name}' holds a value that is not finite")
    if name.endswith(("scale", "input.std")):
        refused(with_element(healthy_conv, name, 0), f"'{name}' holds a scale that is not positive")
