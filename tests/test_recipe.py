"""Recipes: what they refuse, by name and with what is known."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import pytest

from engines import LookAhead, Optimizer, Recipe
from engines.recipe import (
    FUSION_NAMES,
    MASTER_NAMES,
    OPTIMIZER_NAMES,
    PRECISION_NAMES,
)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("precision", "int8, fp32"),
        ("masters", "float32, int16, int8"),
        ("fusion", "auto, compiled, kernels, eager"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(field, known):
    with pytest.raises(ValueError, match=f"^{field} 'best' is unknown; known: {known}$"):
        Recipe(**{field: "best"})


def test_every_known_name_is_taken():
    names = itertools.product(MASTER_NAMES, FUSION_NAMES, OPTIMIZER_NAMES)
    for masters, fusion, optimizer in names:
        Recipe(masters=masters, fusion=fusion, optimizer=Optimizer(optimizer))
    for precision in PRECISION_NAMES:
        Recipe(precision=precision)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^optimizer 'lion' is unknown; known: adam, sgd$"):
        Optimizer("lion")


@pytest.mark.parametrize("decay", [-1e-9, float("nan")])
def test_a_weight_decay_below_zero_is_refused(decay):
    with pytest.raises(ValueError, match=f"weight decay is {decay}; wanted 0 or more"):
        Optimizer(weight_decay=decay)


@pytest.mark.parametrize("masters", ["int16", "int8"])
def test_the_float_twin_has_no_codes_to_be_masters(masters):
    with pytest.raises(ValueError, match=f"masters '{masters}' hold int8 codes.* wanted 'float32'"):
        Recipe(precision="fp32", masters=masters)


def test_the_default_is_int8_with_float32_masters_and_exact_look_ahead():
    recipe = Recipe()
    assert recipe == Recipe("int8", LookAhead(), "float32", Optimizer(), "eager")
    assert recipe.look_ahead == LookAhead("exact", None)
    assert recipe.optimizer == Optimizer("adam", 0.0)


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().masters = "int8"


def test_a_recipe_needs_no_torch():
    script = "import sys, engines; engines.Recipe(); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "False"
