"""The training step's gradients are those of Eq. 3-4 (FF-INT8, arXiv 2506.22771v1).

In fp32 the engine must match autograd through the plain model; lambda = 0 must be layer-local
learning to the last bit, and must not pay for what it does not use.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from engines.dense import lower
from engines.heads import GroupHead
from engines.objective import ClassGoodness
from engines.optim import AdamMasters
from engines.precision import PRECISIONS
from engines.rounding import NoiseKey
from engines.torch_train import TorchTrainEngine
from models import ModelSpec
from models.base import length_normalize
from models.mlp import build_mlp
from tests import reference

# Widths that 5 classes do not divide, and no two alike.
SPEC = ModelSpec("mlp", (11,), 5, (23, 17, 31, 14))
SEED, UNITS, ALPHA = 4, len(SPEC.hidden), 5.0
# Float32 sums of at most 31 products through four units, against float64.
GRADIENT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(19, 11)), -3.9, 3.9).astype(np.float32)  # the engine clips at 4
    return x, rng.integers(0, 5, 19)


@pytest.fixture
def gradients(monkeypatch):
    """Gradients of each unit as they reach its optimizer, which then takes its step."""
    captured: list[dict[str, np.ndarray]] = []
    step = AdamMasters.step

    def record(self, gradients, learning_rate):
        captured.insert(0, {name: g.numpy().copy() for name, g in gradients.items()})
        step(self, gradients, learning_rate)

    monkeypatch.setattr(AdamMasters, "step", record)
    return captured


def fp32_step(batch, weight: float):
    engine = TorchTrainEngine(SPEC, seed=SEED, precision="fp32")
    # A rate that wrecks the weights: a gradient taken through updated ones would show.
    return engine.train_step(*batch, learning_rate=1.0, look_ahead_weight=weight)


def autograd(batch, weight: float) -> list[dict[str, np.ndarray]]:
    """float64 `dL_new/d(weight, bias)` of each unit, Eq. 4, through the plain model."""
    x, labels = (torch.from_numpy(array) for array in batch)
    model = build_mlp(SPEC, SEED).double()
    losses = []
    for y in model(x.double()):
        groups = torch.tensor_split(y, SPEC.max_classes, dim=1)
        goodness = torch.stack([group.square().mean(dim=1) for group in groups], dim=1)
        losses.append(cross_entropy(ALPHA * goodness, labels))
    found = []
    for index, unit in enumerate(model.units):
        loss = losses[index] + weight * sum(losses[index + 1 :])
        parameters = [unit.linear.weight, unit.linear.bias]
        grads = torch.autograd.grad(loss, parameters, retain_graph=True)
        found.append({n: g.numpy() for n, g in zip(("weight", "bias"), grads, strict=True)})
    return found


def assert_close(found, wanted, tolerance: float) -> None:
    for unit in range(UNITS):
        for name in ("weight", "bias"):
            error = reference.relative_error(found[unit][name], wanted[unit][name])
            assert error < tolerance, f"unit {unit} {name}"


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0, 1.6])
def test_every_unit_gets_the_gradient_of_its_own_and_lambda_times_the_later_losses(
    batch, gradients, weight
):
    fp32_step(batch, weight)
    assert len(gradients) == UNITS
    assert_close(gradients, autograd(batch, weight), GRADIENT_TOLERANCE)


def test_lambda_one_is_back_propagation_of_the_sum_of_all_losses(batch, gradients):
    fp32_step(batch, 1.0)
    x, labels = (torch.from_numpy(array) for array in batch)
    model = build_mlp(SPEC, SEED).double()
    head = GroupHead(SPEC.max_classes)
    goodness = [head.goodness(y, {}) for y in model(x.double())]
    sum(cross_entropy(ALPHA * g, labels) for g in goodness).backward()
    summed = [
        {"weight": u.linear.weight.grad.numpy(), "bias": u.linear.bias.grad.numpy()}
        for u in model.units
    ]
    assert_close(gradients, summed, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_numpy_oracle_agrees_with_autograd_and_with_the_engine(batch, gradients, weight):
    report = fp32_step(batch, weight)
    model = build_mlp(SPEC, SEED).double()
    losses, wanted = reference.mlp_step(
        [unit.linear.weight.detach().numpy() for unit in model.units],
        [unit.linear.bias.detach().numpy() for unit in model.units],
        batch[0].astype(np.float64),
        batch[1],
        classes=SPEC.max_classes,
        alpha=ALPHA,
        look_ahead_weight=weight,
    )
    assert_close(wanted, autograd(batch, weight), 1e-12)  # both float64
    assert_close(gradients, wanted, GRADIENT_TOLERANCE)
    np.testing.assert_allclose(report.losses, losses, rtol=GRADIENT_TOLERANCE)


# --- lambda = 0 -------------------------------------------------------------------------------


def layer_local_steps(batch, precision_name: str, steps: int, learning_rate: float):
    """Forward-Forward without any sweep: each unit learns before the next one has even run."""
    precision = PRECISIONS[precision_name]()
    objective, head = ClassGoodness(SPEC.max_classes), GroupHead(SPEC.max_classes)
    units = [lower(unit, precision) for unit in build_mlp(SPEC, SEED).units]
    x, labels = (torch.from_numpy(array) for array in batch)
    for step in range(steps):
        a = precision.activation(x)
        for index, unit in enumerate(units):
            activity = unit.forward(a)
            _, grad_goodness = objective.loss(head.goodness(activity, {}), labels)
            direction, length = length_normalize(activity)
            output = precision.activation(direction)
            error = head.grad_activity(grad_goodness, output.dequantize() * length, {})
            error *= output.codes > 0
            unit.update(error, a, NoiseKey(SEED, step, 2 * index), learning_rate)
            a = output
    return [unit.state() for unit in units]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_lambda_zero_is_layer_local_learning_bit_for_bit(batch, precision):
    with torch.no_grad():
        wanted = layer_local_steps(batch, precision, steps=5, learning_rate=0.01)
    engine = TorchTrainEngine(SPEC, seed=SEED, precision=precision)
    for _ in range(5):
        engine.train_step(*batch, learning_rate=0.01, look_ahead_weight=0.0)
    found = engine.state()
    for index, state in enumerate(wanted):
        for name, tensor in state.items():
            assert found[f"units.{index}.{name}"].tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_only_with_look_ahead_does_a_unit_depend_on_those_after_it(batch, precision, weight):
    short = ModelSpec(SPEC.name, SPEC.input_shape, SPEC.max_classes, SPEC.hidden[:2])
    states = []
    for spec in (short, SPEC):
        engine = TorchTrainEngine(spec, seed=SEED, precision=precision)
        for _ in range(3):
            engine.train_step(*batch, learning_rate=0.01, look_ahead_weight=weight)
        states.append(engine.state())
    same = [
        states[0][name].tobytes() == states[1][name].tobytes()
        for name in ("units.0.weight", "units.1.weight")
    ]
    assert same == ([True, True] if weight == 0 else [False, False])


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_products_per_step(batch, precision, weight, monkeypatch):
    kind, calls = PRECISIONS[precision], []

    def counted(name: str):
        product = getattr(kind, name)

        def count(self, *args):
            calls.append(name)
            return product(self, *args)

        return count

    for name in ("linear", "grad_weight", "grad_input"):
        monkeypatch.setattr(kind, name, counted(name))
    engine = TorchTrainEngine(SPEC, seed=SEED, precision=precision)
    engine.train_step(*batch, learning_rate=0.01, look_ahead_weight=weight)
    assert calls.count("linear") == UNITS
    assert calls.count("grad_weight") == UNITS
    assert calls.count("grad_input") == (UNITS - 1 if weight > 0 else 0)
