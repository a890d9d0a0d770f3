"""Healthy networks of every model lie far inside the limits, and what diverged lies outside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engines import (
    OutOfRangeError,
    Recipe,
    SaturatedError,
    Weights,
    WeightsError,
    check_health,
    open_train_engine,
)
from engines import health as health_module
from models import ModelSpec
from tests.networks import CLASSES, HUGE_RATE, SGD, TINY, batch_of

SPECS = [
    dataclasses.replace(spec, objective=objective)
    for spec in TINY.values()
    for objective in ("class_goodness", "ff")
]
MLP = ModelSpec("mlp", (16,), CLASSES, (32, 32))


def learned(
    spec: ModelSpec, steps: int, rate: float, recipe: Recipe, *, flood: bool = False
) -> Weights:
    engine = open_train_engine(spec, seed=2, recipe=recipe)
    engine.standardize_from(batch_of(spec, 64)[0])
    for step in range(steps):
        x, labels = batch_of(spec, 64, step)
        wanted = np.zeros_like(labels) if flood else labels
        engine.train_step(x, wanted, learning_rate=rate, look_ahead_weight=1.0)
    return engine.export(classes=tuple(range(CLASSES)), version=1, parent=None, last_seq=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.objective}")
@pytest.mark.parametrize("steps", [0, 3])
def test_every_model_is_healthy_with_room_to_spare(spec, steps, monkeypatch) -> None:
    monkeypatch.setattr(health_module, "LARGEST_VALUE", health_module.LARGEST_VALUE / 20)
    monkeypatch.setattr(health_module, "LARGEST_SATURATED_SHARE", 0.05)
    monkeypatch.setattr(health_module, "LARGEST_ZERO_SHARE", 0.1)
    check_health(learned(spec, steps, 1e-3, Recipe()))


@pytest.mark.parametrize("masters", ["float32", "int16", "int8"])
def test_a_flood_of_one_class_is_healthy_with_any_masters(masters, monkeypatch) -> None:
    monkeypatch.setattr(health_module, "LARGEST_VALUE", health_module.LARGEST_VALUE / 20)
    check_health(learned(MLP, 30, 1e-2, Recipe(masters=masters), flood=True))


@pytest.mark.parametrize("spec", TINY.values(), ids=TINY)
def test_steps_without_bound_are_found(spec) -> None:
    with pytest.raises(WeightsError):  # or values that are no number any more
        check_health(learned(spec, 2, HUGE_RATE, SGD))


def test_a_network_that_a_large_learning_rate_threw_out_is_found() -> None:
    deep = ModelSpec("mlp", (64,), CLASSES, (64,) * 6)
    with pytest.raises(OutOfRangeError, match=r"canary\.goodness"):
        check_health(learned(deep, 3, 1.0, Recipe()))


def with_codes(share: float, code: int) -> Weights:
    weights = learned(MLP, 0, 0.0, Recipe())
    codes = weights.arrays["units.1.weight.codes"].copy()
    codes.flat[: round(share * codes.size)] = code
    return dataclasses.replace(weights, arrays={**weights.arrays, "units.1.weight.codes": codes})


@pytest.mark.parametrize(("code", "limit"), [(127, 0.25), (-127, 0.25), (0, 0.5)])
def test_codes_at_the_ends_or_at_zero_are_found_at_the_limit(code, limit) -> None:
    check_health(with_codes(0.9 * limit, code))
    with pytest.raises(SaturatedError, match=r"units\.1\.weight\.codes"):
        check_health(with_codes(1.2 * limit, code))


@pytest.mark.parametrize("name", ["units.0.bias", "units.1.input_scale", "canary.goodness"])
def test_a_value_beyond_the_limit_is_named(name) -> None:
    weights = learned(MLP, 0, 0.0, Recipe())
    array = weights.arrays[name].copy()
    array.flat[0] = 1e6
    with pytest.raises(OutOfRangeError, match=name):
        check_health(dataclasses.replace(weights, arrays={**weights.arrays, name: array}))


def test_a_sensor_may_have_any_unit() -> None:
    engine = open_train_engine(MLP, seed=2)
    x, _ = batch_of(MLP, 32)
    engine.standardize_from(x * 1e6)
    check_health(engine.export(classes=(), version=1, parent=None, last_seq=0))
