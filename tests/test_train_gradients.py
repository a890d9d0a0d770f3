"""The training step's gradients are those of Eq. 3-4 (FF-INT8, arXiv 2506.22771v1).

In fp32 the engine must match autograd through torch's own modules, in every weight, gamma, beta,
gate and head of every network; lambda = 0 must be layer-local learning to the last bit, and must
not pay for what it does not use.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from engines import LookAhead, Recipe, open_train_engine
from engines.feature import Feature
from engines.fusion import Fusion
from engines.lower import lower
from engines.precision import PRECISIONS
from engines.predict_network import channels_last, image_shape
from engines.rule import open_rule
from engines.unit import Step
from models.build import build_model
from models.mlp import build_mlp
from tests import reference
from tests.networks import (
    CLASSES,
    NETWORKS,
    SGD,
    Twin,
    batch_of,
    opened,
    sgd_gradients,
)

MLP = NETWORKS["mlp"]
SEED, UNITS, ALPHA = 4, len(MLP.hidden), 5.0
every_network = pytest.mark.parametrize("spec", NETWORKS.values(), ids=NETWORKS)

# Float32 against float64, through up to 19 units whose norms divide by what nearly cancels.
GRADIENT_TOLERANCE = 1e-4
# A gate's bias sums over the batch what a sigmoid has made small and mostly cancels.
GATE_TOLERANCE = 1e-3


def assert_close(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        tolerance = GATE_TOLERANCE if "squeeze_excite" in name else GRADIENT_TOLERANCE
        assert np.linalg.norm(gradient) > 0, name  # zeros would agree with anything
        assert reference.relative_error(found[name], gradient) < tolerance, name


# --- gradients --------------------------------------------------------------------------------


def exact(weight: float, window: float = np.inf):
    return lambda unit, later: 1.0 if later == unit else weight if later - unit <= window else 0.0


def discounted(weight: float, window: float = np.inf):
    return lambda unit, later: weight ** (later - unit) if later - unit <= window else 0.0


@every_network
@pytest.mark.parametrize(
    ("look_ahead", "weight", "weight_of"),
    [
        (LookAhead(), 0.0, exact(0.0)),
        (LookAhead(), 0.6, exact(0.6)),
        (LookAhead(), 1.0, exact(1.0)),
        (LookAhead("discounted"), 0.6, discounted(0.6)),
        (LookAhead(window=1), 0.6, exact(0.6, 1)),
        (LookAhead("discounted", window=2), 0.6, discounted(0.6, 2)),
    ],
    ids=["isolated", "exact", "sum of losses", "discounted", "window 1", "discounted window 2"],
)
def test_everything_that_learns_gets_the_gradient_of_own_and_later_losses(
    spec, look_ahead, weight, weight_of
):
    batch = batch_of(spec, 12)
    engine = opened(spec, "fp32", look_ahead)
    losses, wanted = Twin(spec, engine.state()).gradients(batch, weight_of)
    found_losses, found = sgd_gradients(engine, batch, weight)
    np.testing.assert_allclose(found_losses, losses, rtol=GRADIENT_TOLERANCE)
    assert_close(found, wanted)


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.6])
def test_the_numpy_oracle_agrees_with_autograd_and_with_the_engine(weight):
    batch = batch_of(MLP, 19)
    engine = open_train_engine(MLP, seed=SEED, recipe=dataclasses.replace(SGD, precision="fp32"))
    twin = Twin(MLP, engine.state())
    model = build_mlp(MLP, SEED).double()
    losses, per_unit = reference.mlp_step(
        [unit.linear.weight.detach().numpy() for unit in model.units],
        [unit.linear.bias.detach().numpy() for unit in model.units],
        batch[0].astype(np.float64),
        batch[1],
        classes=CLASSES,
        alpha=ALPHA,
        look_ahead_weight=weight,
    )
    wanted = {f"units.{u}.{n}": g for u, grads in enumerate(per_unit) for n, g in grads.items()}
    _, by_autograd = twin.gradients(batch, exact(weight))
    for name, gradient in by_autograd.items():
        assert reference.relative_error(wanted[name], gradient) < 1e-12, name  # both float64
    report, found = sgd_gradients(engine, batch, weight)
    assert_close(found, wanted)
    np.testing.assert_allclose(report, losses, rtol=1e-5)


# --- lambda = 0 -------------------------------------------------------------------------------


def layer_local_steps(spec, recipe: Recipe, batches, learning_rate: float):
    """Forward-Forward without any sweep: each unit learns before the next one has even run."""
    precision, rule = PRECISIONS[recipe.precision], open_rule(spec, recipe)
    fusion = Fusion("eager", "a test")
    network = lower(spec, build_model(spec, SEED), rule.heads, recipe, precision, fusion)
    heads = [
        {n: network.parameters.tensors[f"heads.{u}.{n}"] for n in head.first_parameters()}
        for u, head in enumerate(rule.heads)
    ]
    for number, (x, labels) in enumerate(batches):
        rows = channels_last(torch.from_numpy(x).flatten(1), image_shape(spec))
        scale = precision.scale(rows.abs().amax())
        a = Feature(precision.quantize(rows, scale), scale)
        for u, (unit, head) in enumerate(zip(network.units, rule.heads, strict=True)):
            a = unit.forward(a)
            activity = unit.kept.activity(precision)
            goodness = head.goodness(activity, heads[u])
            _, grad = rule.objective.loss(goodness, torch.from_numpy(labels))
            error = head.grad_activity(grad, activity, heads[u])
            unit.backward(error, Step(SEED, number, learning_rate), update=True, propagate=False)
            for name, gradient in head.grad_parameters(grad, activity).items():
                network.gradients[f"heads.{u}.{name}"] = gradient
        network.parameters.step(network.gradients, learning_rate)
        network.gradients.clear()
    states = {f"parameters.{name}": t for name, t in network.parameters.state().items()}
    for u, unit in enumerate(network.units):
        states |= {f"units.{u}.{name}": t for name, t in unit.state().items()}
    return states


@pytest.mark.parametrize(
    ("network", "precision", "look_ahead", "weight"),
    [
        *((name, "int8", LookAhead(), 0.0) for name in NETWORKS),
        *((name, "fp32", LookAhead(window=0), 0.7) for name in ("mlp", "resnet8")),
        *((name, "int8", LookAhead(window=0), 0.7) for name in ("mlp", "mobilenet_v2")),
        *((name, "int8", LookAhead("discounted"), 0.0) for name in ("mlp", "efficientnet_b0")),
    ],
)
def test_lambda_zero_is_layer_local_learning_bit_for_bit(network, precision, look_ahead, weight):
    spec = NETWORKS[network]
    # The first step moves linear heads off zero, the second the units.
    batches = [batch_of(spec, 6, seed=step) for step in range(2)]
    recipe = Recipe(precision=precision, look_ahead=look_ahead)
    with torch.no_grad():
        wanted = layer_local_steps(spec, recipe, batches, 0.01)
    engine = open_train_engine(spec, seed=SEED, recipe=recipe)
    for batch in batches:
        engine.train_step(*batch, learning_rate=0.01, look_ahead_weight=weight)
    found = engine.state()
    for name, tensor in wanted.items():
        assert found[name].tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_only_with_look_ahead_does_a_unit_depend_on_those_after_it(precision, weight):
    short = dataclasses.replace(MLP, hidden=MLP.hidden[:2])
    states = []
    for spec in (short, MLP):
        engine = open_train_engine(spec, seed=SEED, recipe=Recipe(precision=precision))
        for _ in range(3):
            engine.train_step(*batch_of(MLP, 19), learning_rate=0.01, look_ahead_weight=weight)
        states.append(engine.state())
    same = [
        states[0][name].tobytes() == states[1][name].tobytes()
        for name in ("units.0.weight.weight", "units.1.weight.weight")
    ]
    assert same == ([True, True] if weight == 0 else [False, False])


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_products_per_step(precision, weight, monkeypatch):
    kind, calls = type(PRECISIONS[precision]), []

    def counted(name: str):
        product = getattr(kind, name)

        def count(self, *args):
            calls.append(name)
            return product(self, *args)

        return count

    for name in ("linear", "linear_grad_weight", "linear_grad_input"):
        monkeypatch.setattr(kind, name, counted(name))
    engine = open_train_engine(MLP, seed=SEED, recipe=Recipe(precision=precision))
    engine.train_step(*batch_of(MLP, 19), learning_rate=0.01, look_ahead_weight=weight)
    assert calls.count("linear") == UNITS
    assert calls.count("linear_grad_weight") == UNITS
    assert calls.count("linear_grad_input") == (UNITS - 1 if weight > 0 else 0)
