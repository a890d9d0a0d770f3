"""Every unit of every network in INT8 beside its float twin: how far apart, and what is kept.

Each pair of units gets the same input and the same error, so that what is compared is one unit's
own rounding. (Through a whole network of batch norms differences grow from layer to layer, in
float32 too.)
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engines.conv_units import add_features
from engines.feature import Feature
from engines.fusion import Fusion
from engines.lower import lower
from engines.precision import PRECISIONS, sum_of
from engines.predict_network import channels_last, image_shape
from engines.rule import open_rule
from engines.unit import Step
from models.build import build_model
from tests import reference
from tests.networks import HUGE_RATE, NETWORKS, SGD, batch_of, short_name

INT8, FP32 = PRECISIONS["int8"], PRECISIONS["fp32"]
BATCH = 24
STEP = Step(5, 3, HUGE_RATE)


def lowered(spec, precision, *, seed: int = 4):
    """A network whose norms have left their start; signs and sizes differ."""
    recipe = dataclasses.replace(SGD, precision=precision.name)
    heads = open_rule(spec, recipe).heads
    model = build_model(spec, seed)
    network = lower(spec, model, heads, recipe, precision, Fusion("eager", "a test"))
    rng = np.random.default_rng(seed)
    for name, tensor in network.parameters.tensors.items():
        if name.endswith("gamma"):
            values = rng.uniform(0.5, 1.5, tensor.shape) * rng.choice([-1, 1, 1], tensor.shape)
        else:
            values = tensor.numpy() + rng.normal(scale=0.1, size=tensor.shape)
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return network


def first_feature(spec, rows: int = BATCH) -> Feature:
    x = channels_last(torch.from_numpy(batch_of(spec, rows)[0]).flatten(1), image_shape(spec))
    scale = INT8.scale(x.abs().amax())
    return Feature(INT8.quantize(x, scale), scale)


def backward(unit, gradients, error, prefix: str):
    """Gradient at the input and of everything that learns, by name."""
    before = {name: tensor.clone() for name, tensor in unit.state().items()}
    passed = sum_of(unit.backward(error.clone(), STEP, update=True, propagate=True))
    found = {"input": passed} | {n: g for n, g in gradients.items() if n.startswith(prefix)}
    for name, tensor in unit.state().items():
        if f"{name}.momentum" in before:
            found[short_name(name)] = (before[name] - tensor) / HUGE_RATE
    return found


@pytest.mark.parametrize("spec", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_every_unit_in_int8_is_its_float_twin_but_for_rounding(spec):
    ours, twins = lowered(spec, INT8), lowered(spec, FP32)
    a, rng = first_feature(spec), np.random.default_rng(0)
    snr: dict[str, list[float]] = {"products": [], "vectors": []}
    for u, (unit, twin) in enumerate(zip(ours.units, twins.units, strict=True)):
        as_float = Feature(a.operand(INT8) * a.scale, torch.ones(()))
        a = unit.forward(a)
        twin.forward(as_float)
        activity, wanted = unit.kept.activity(INT8), twin.kept.activity(FP32)
        # At most three layers and a gate, 127 steps for weights and activity of each: 22 to 43 dB.
        assert reference.snr_db(activity, wanted) >= 20, f"unit {u}"
        error = torch.from_numpy(rng.normal(size=activity.shape).astype(np.float32))
        found = backward(unit, ours.gradients, error, f"units.{u}.")
        expected = backward(twin, twins.gradients, error, f"units.{u}.")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            kind = "products" if name.endswith(("weight", "input")) else "vectors"
            snr[kind].append(reference.snr_db(found[name], gradient))
    # Rounding alone gives 30 dB. A ReLU whose code is zero lets nothing through, as if it were on
    # the other side of its corner: half a percent of all, 20 dB a layer and less in a tensor of a
    # few hundred. An angle of 18 degrees is 10 dB.
    assert min(snr["products"]) >= 10
    assert np.median(snr["products"]) >= 15
    # Behind a layer whose own norm undoes any change of scale, a gamma's gradient all but cancels.
    assert np.median(snr["vectors"]) >= 10


# --- what is kept -------------------------------------------------------------------------------


def tensors_within(value, seen: set[int]):
    """Every tensor that an object leads to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_within(part, seen)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from tensors_within(part, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_within(vars(value), seen)


NO_PARTS = SimpleNamespace(named={})  # of a dense unit


def new_memory(units, before) -> dict[int, torch.Tensor]:
    """One tensor for each piece of memory that the units lead to and that is not of `before`."""
    found = {t.untyped_storage().data_ptr(): t for t in tensors_within(units, set())}
    return {at: t for at, t in found.items() if at not in before}


def codes_of_a_sample(spec) -> int:
    """One byte each: the input, every layer's output, every gated activity, every sum."""
    total = spec.features
    for unit in spec.units:
        if spec.name == "mlp":
            total += math.prod(unit.output_shape)
            continue
        total += sum(math.prod(layer.output_shape) for layer in unit.layers.values())
        if unit.adds:
            total += math.prod(unit.output_shape)
        if "squeeze_excite" in unit.parts:
            total += math.prod(unit.depthwise.output_shape)
    return total


@pytest.mark.parametrize("spec", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_between_forward_and_backward_one_byte_a_code_is_kept_and_no_float_activity(spec):
    network = lowered(spec, INT8)
    before = new_memory(network.units, {})
    a = first_feature(spec)
    for unit in network.units:
        a = unit.forward(a)
    kept = new_memory(network.units, before)
    # Scales, lengths, one vector a channel, and of a gate one number a sample and channel.
    widths = {layer.weight_shape[0] for unit in spec.units for layer in unit.layers.values()}
    gates = [unit.parts["squeeze_excite"] for unit in spec.units if "squeeze_excite" in unit.parts]
    allowed = {(), (BATCH, 1), *((width,) for width in widths)}
    allowed |= {(BATCH, size) for gate in gates for size in (gate.channels, gate.reduced)}
    floats = {(*t.shape,) for t in kept.values() if t.dtype not in (torch.int8, torch.int32)}
    assert floats <= allowed
    # What the products work in belongs to nobody and stays: one int32 result, two int8 operands.
    parts = [p for unit in network.units for p in vars(unit).get("_parts", NO_PARTS).named.values()]
    products = [part._products for part in parts if hasattr(part, "_products")]
    scratch = {at: t for at, t in new_memory(products, before).items() if at in kept}
    assert sorted(str(t.dtype) for t in scratch.values()) == (
        [] if spec.name == "mlp" else ["torch.int32", "torch.int8", "torch.int8"]
    )
    codes = [t for at, t in kept.items() if t.dtype == torch.int8 and at not in scratch]
    assert sum(t.numel() for t in codes) == BATCH * codes_of_a_sample(spec)


# --- what a unit is asked for -------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_unit_that_only_propagates_learns_nothing_and_passes_on_the_same(name):
    network = lowered(NETWORKS[name], INT8)
    a = first_feature(NETWORKS[name])
    step = STEP._replace(learning_rate=0.01)
    for unit in network.units[:6]:
        output = unit.forward(a)
        error = torch.randn(unit.kept.activity(INT8).shape)
        state = {n: t.clone() for n, t in unit.state().items()}
        passed = sum_of(unit.backward(error.clone(), step, update=False, propagate=True))
        assert all(torch.equal(t, state[n]) for n, t in unit.state().items())
        assert not network.gradients
        assert unit.backward(error.clone(), step, update=True, propagate=False) is None
        unit.load_state(state)
        unit.forward(a)
        both = sum_of(unit.backward(error, step, update=True, propagate=True))
        assert torch.equal(both, passed)
        network.gradients.clear()
        a = output


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_unit_that_has_been_updated_says_that_forward_comes_first(name):
    network = lowered(NETWORKS[name], INT8)
    a = first_feature(NETWORKS[name])
    for unit in network.units[:3]:
        with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
            _ = unit.kept
        a = unit.forward(a)
        error = torch.randn(unit.kept.activity(INT8).shape)
        unit.backward(error.clone(), STEP, update=True, propagate=False)
        with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
            _ = unit.kept
        with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
            unit.backward(error, STEP, update=True, propagate=False)


# --- sums ---------------------------------------------------------------------------------------


def test_a_sum_is_rounded_once_from_what_its_terms_stand_for():
    rng = np.random.default_rng(0)
    codes = [torch.from_numpy(rng.integers(-127, 128, (2, 3, 3, 4)).astype(np.int8)) for _ in "ab"]
    branch = Feature(codes[0], torch.tensor(0.02))
    around = Feature(codes[1], torch.tensor(0.05), "relu")
    total = codes[0].double() * 0.02 + codes[1].double().clamp_min(0) * 0.05
    found, scale = add_features(INT8, branch, around, None)
    assert scale.item() == pytest.approx(total.abs().max().item() / 127, rel=1e-6)
    assert ((found * scale - total).abs() <= scale * 0.501).all()
    # Serving gives the scale; what lies beyond it is clipped.
    fixed, same = add_features(INT8, branch, around, torch.tensor(0.01))
    assert same.item() == pytest.approx(0.01)
    np.testing.assert_array_equal(fixed, (total / 0.01 - 1e-6).round().clamp(-127, 127))
