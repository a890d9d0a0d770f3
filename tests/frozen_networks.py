"""Small networks with a frozen prefix, for the tests of freezing and of latents."""

from __future__ import annotations

import dataclasses

import pytest

from engines import LookAhead, Recipe, open_predict_engine, open_train_engine
from tests.networks import NETWORKS as ORDINARY
from tests.networks import batch_of

STEP = {"learning_rate": 2e-3, "look_ahead_weight": 0.5}
LABELS = tuple("abcde")
# Values matter less here than that every kind of unit is met.
NETWORKS = ORDINARY | {
    name: dataclasses.replace(ORDINARY[name], input_shape=(2, 8, 7))
    for name in ("mobilenet_v2", "efficientnet_b0")
}
MLP = NETWORKS["mlp"]
every_network = pytest.mark.parametrize("name", NETWORKS)
every_kind = pytest.mark.parametrize(
    ("name", "masters"),
    [*((name, "float32") for name in NETWORKS), ("mlp", "int8"), ("resnet8", "int16")],
)


def middle(name: str) -> int:
    return len(NETWORKS[name].units) // 2


def recipe_of(masters: str) -> Recipe:
    return Recipe(masters=masters, look_ahead=LookAhead("discounted"))


def trained(name: str, masters: str = "float32", steps: int = 2, seed: int = 4):
    engine = open_train_engine(NETWORKS[name], seed=seed, recipe=recipe_of(masters))
    engine.standardize_from(batch_of(NETWORKS[name], 16, seed=9)[0])
    return learned(engine, NETWORKS[name], steps)


def learned(engine, spec, steps: int = 1):
    for step in range(steps):
        engine.train_step(*batch_of(spec, 6, seed=100 + step), **STEP)
    return engine


def exported(engine, version: int = 1):
    return engine.export(classes=LABELS, version=version, parent=None, last_seq=0)


def served(engine):
    return open_predict_engine("torch").open(exported(engine))


def of_prefix(names, units: int):
    return [n for n in names if n.startswith(tuple(f"units.{i}." for i in range(units)))]
