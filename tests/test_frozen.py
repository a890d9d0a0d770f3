"""The frozen prefix: units that stand still, what is left of them, and who answers for them."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch

from benchmarks.live_bytes import peak_live_bytes
from engines import Latent, Recipe, WeightsError, open_predict_engine, open_train_engine
from models import ModelSpec
from tests.contracts import bits
from tests.frozen_networks import (
    MLP,
    NETWORKS,
    STEP,
    every_kind,
    every_network,
    exported,
    learned,
    middle,
    of_prefix,
    recipe_of,
    served,
    trained,
)
from tests.networks import batch_of

FF = dataclasses.replace(MLP, objective="ff")

# --- what stands still ---------------------------------------------------------------------------


@every_kind
def test_frozen_units_are_exported_unchanged_while_those_behind_them_learn(name, masters):
    engine, units = trained(name, masters), middle(name)
    before = bits(exported(engine).arrays)
    engine.freeze(units)
    assert bits(exported(engine).arrays) == before
    learned(engine, NETWORKS[name])
    after = bits(exported(engine, 2).arrays)
    still = [*of_prefix(before, units), *(n for n in before if n.startswith("input."))]
    assert {n: after[n] for n in still} == {n: before[n] for n in still}
    codes = [n for n in before if n.endswith("codes") and n not in still]
    for index in range(units, len(NETWORKS[name].units)):
        assert any(after[n] != before[n] for n in codes if n.startswith(f"units.{index}."))


# --- memory --------------------------------------------------------------------------------------


@every_kind
def test_no_master_moment_statistic_or_head_of_a_frozen_unit_is_left(name, masters):
    engine, units = trained(name, masters), middle(name)
    before = engine.state()
    engine.freeze(units)
    after, arrays = engine.state(), exported(engine).arrays
    own = {f"frozen.{n}" for n in of_prefix(arrays, units)}
    kept = {
        n
        for n in before
        if not n.removeprefix("parameters.").startswith(
            tuple(f"{kind}.{i}." for kind in ("units", "heads") for i in range(units))
        )
    }
    assert set(after) == kept | own
    assert bits({n.removeprefix("frozen."): after[n] for n in own}) == bits(
        {n: arrays[n] for n in of_prefix(arrays, units)}
    )
    assert sum(a.nbytes for a in after.values()) < sum(a.nbytes for a in before.values())


def float_matrices(shape) -> int:
    gc.collect()
    tensors = (t for t in gc.get_objects() if type(t) is torch.Tensor)
    return sum(t.dtype == torch.float32 and tuple(t.shape) == shape for t in tensors)


@pytest.mark.parametrize(
    "spec", [ModelSpec("mlp", (13,), 5, (29, 19)), ModelSpec("resnet8", (7, 8, 8), 5, width=0.5)]
)
def test_the_frozen_units_float_matrices_are_released(spec):
    # Of a shape that no other test has.
    shape = next(iter(spec.units[0].layers.values())).weight_shape
    engine = learned(open_train_engine(spec, seed=1), spec)
    assert float_matrices(shape) >= 3  # the master and Adam's two moments
    engine.freeze(1)
    learned(engine, spec)
    assert float_matrices(shape) == 0


def test_peak_memory_falls_by_what_moved_the_prefix_and_by_what_it_kept():
    spec = ModelSpec("mlp", (400,), 5, (300, 250, 40))
    batch = batch_of(spec, 16)

    def opened_at(units: int):
        def build():
            engine = open_train_engine(spec, seed=0)
            if units:
                engine.freeze(units)
            return engine

        return build

    peaks = [
        peak_live_bytes(opened_at(units), lambda engine: engine.train_step(*batch, **STEP))
        for units in range(3)
    ]
    weights = [unit.linear.macs for unit in spec.units]
    for freed, lower, higher in zip(weights, peaks, peaks[1:], strict=False):
        # A float32 master and two moments at least; the codes stay.
        assert lower - higher >= 3 * 4 * freed


# --- saved and resumed ---------------------------------------------------------------------------


@every_kind
def test_opened_frozen_and_given_the_state_an_engine_takes_the_same_next_step(name, masters):
    spec, units = NETWORKS[name], middle(name)
    engine = trained(name, masters)
    engine.freeze(units)
    learned(engine, spec)
    state = engine.state()
    resumed = open_train_engine(spec, seed=4, recipe=recipe_of(masters))
    resumed.freeze(units)
    # It has never learned, so that all that matters has to come from the state.
    assert bits(resumed.state()) != bits(state)
    resumed.load_state(state)
    assert bits(resumed.state()) == bits(state)
    x, labels = batch_of(spec, 6, seed=50)
    assert engine.latent(x).codes.tobytes() == resumed.latent(x).codes.tobytes()
    reports = [e.train_step(x, labels, **STEP) for e in (engine, resumed)]
    assert reports[0] == reports[1]
    assert bits(resumed.state()) == bits(engine.state())
    assert bits(exported(resumed).arrays) == bits(exported(engine).arrays)


def test_a_state_is_a_copy_of_the_frozen_units_too():
    engine = trained("mlp")
    engine.freeze(2)
    state = engine.state()
    kept = bits(state)
    for array in state.values():
        array[...] = 1
    assert bits(engine.state()) == kept


@pytest.mark.parametrize(("saved", "frozen"), [(0, 1), (1, 0), (1, 2), (3, 1)])
def test_a_state_of_another_number_of_frozen_units_is_refused(saved, frozen):
    first, second = trained("mlp"), trained("mlp", seed=5)
    for engine, units in ((first, saved), (second, frozen)):
        if units:
            engine.freeze(units)
    before = bits(second.state())
    message = f"state has {saved} units frozen, the engine has {frozen}"
    with pytest.raises(WeightsError, match=message):
        second.load_state(first.state())
    assert bits(second.state()) == before


# --- further up, elsewhere, and from the start ---------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "resnet8", "efficientnet_b0"])
def test_more_can_be_frozen_later(name):
    spec, engine = NETWORKS[name], trained(name)
    once = trained(name)
    engine.freeze(1)
    engine.freeze(2)
    once.freeze(2)
    assert bits(engine.state()) == bits(once.state())
    learned(engine, spec)
    learned(once, spec)
    assert bits(engine.state()) == bits(once.state())
    before = bits(exported(engine).arrays)
    engine.freeze(3)
    learned(engine, spec)
    after = bits(exported(engine).arrays)
    assert {n: after[n] for n in of_prefix(before, 3)} == {
        n: before[n] for n in of_prefix(before, 3)
    }
    assert after != before


def test_a_frozen_unit_is_never_let_go():
    engine = trained("mlp")
    engine.freeze(2)
    engine.freeze(2)  # as it is: nothing to object to
    with pytest.raises(ValueError, match="2 units are frozen and cannot learn again, wanted 1"):
        engine.freeze(1)


def test_the_serving_engine_that_is_given_answers_for_the_prefix():
    own, elsewhere = trained("resnet8"), trained("resnet8")
    asked = []

    class Serving:
        def __init__(self, engine) -> None:
            self.engine = engine

        def latent(self, x, units):
            asked.append((len(x), units))
            return self.engine.latent(x, units)

    elsewhere.freeze(2, Serving(served(elsewhere)))
    own.freeze(2)
    learned(own, NETWORKS["resnet8"], 2)
    learned(elsewhere, NETWORKS["resnet8"], 2)
    assert asked == [(6, 2), (6, 2)]
    assert bits(own.state()) == bits(elsewhere.state())
    elsewhere.load_state(own.state())
    learned(elsewhere, NETWORKS["resnet8"], 1)
    assert len(asked) == 3
    # Frozen further without one, an engine answers by itself.
    elsewhere.freeze(3)
    learned(elsewhere, NETWORKS["resnet8"], 1)
    assert len(asked) == 3


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_a_serving_engine_of_other_weights_is_refused(name):
    engine, other = trained(name), trained(name, steps=4)
    engine.freeze(middle(name), served(other))
    before = bits(engine.state())
    with pytest.raises(ValueError, match="made by other weights"):
        learned(engine, NETWORKS[name], 1)
    assert bits(engine.state()) == before


@every_network
def test_a_network_that_has_not_learned_yet_can_be_frozen(name):
    spec, units = NETWORKS[name], middle(name)
    engine = open_train_engine(spec, seed=1)
    engine.freeze(units)
    assert engine.latent(batch_of(spec, 2)[0]).scale == 1
    learned(engine, spec)
    weights = exported(engine)
    with open_predict_engine("torch").open(weights) as serving:
        found = serving.predict(weights.arrays["canary.input"].reshape(-1, *spec.input_shape))
    np.testing.assert_array_equal(found.goodness, weights.arrays["canary.goodness"])


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [-1, 0, 4, 5])
def test_a_prefix_has_a_unit_and_leaves_one(units):
    engine, x = trained("mlp"), batch_of(MLP, 3)[0]
    message = f"prefix of {units} units was asked for, of a network of 4"
    before = bits(engine.state())
    with pytest.raises(ValueError, match=message):
        engine.freeze(units)
    assert bits(engine.state()) == before
    with served(engine) as serving, pytest.raises(ValueError, match=message):
        serving.latent(x, units)


def test_labels_as_input_leave_no_prefix():
    engine = open_train_engine(FF, seed=1)
    message = "labels enter at the first unit"
    with pytest.raises(ValueError, match=message):
        engine.freeze(1)
    with served(engine) as serving, pytest.raises(ValueError, match=message):
        serving.latent(batch_of(FF, 3)[0], 1)


def test_the_float_twin_has_no_prefix_that_could_serve():
    engine = open_train_engine(MLP, seed=1, recipe=Recipe(precision="fp32"))
    with pytest.raises(ValueError, match="the float twin has no int8 output"):
        engine.freeze(1)


def test_without_a_frozen_prefix_there_are_no_latents():
    engine, (x, labels) = trained("mlp"), batch_of(MLP, 3)
    latent = Latent(np.zeros((3, 23), np.int8), np.ones((), np.float32))
    with pytest.raises(RuntimeError, match="no unit is frozen"):
        engine.latent(x)
    with pytest.raises(RuntimeError, match="no unit is frozen"):
        engine.train_latent_step(latent, labels, **STEP)


def test_a_frozen_prefix_keeps_its_standardisation():
    engine, (x, _) = trained("mlp"), batch_of(MLP, 30, seed=77)
    engine.freeze(1)
    before = bits(engine.state())
    with pytest.raises(RuntimeError, match="the first units are frozen"):
        engine.standardize_from(x)
    assert bits(engine.state()) == before


@pytest.mark.parametrize(
    ("x_shape", "labels", "message"),
    [
        ((3, 10), [0, 1, 2], r"shape \[10\] per sample, the model needs \[11\]"),
        ((3, 11), [0, 1], r"labels are int64 \[2\], wanted int64 \[3\]"),
        ((3, 11), [0, 1, 5], r"labels lie in 0\.\.5, wanted 0\.\.4"),
        ((0, 11), [], "at least 1"),
    ],
)
def test_a_bad_batch_for_a_frozen_network_is_named(x_shape, labels, message):
    engine = trained("mlp")
    engine.freeze(2)
    before = bits(engine.state())
    with pytest.raises(ValueError, match=message):
        engine.train_step(np.zeros(x_shape, np.float32), np.array(labels, np.int64), **STEP)
    assert bits(engine.state()) == before


def test_the_log_says_what_is_frozen():
    engine = trained("mlp")
    assert "frozen" not in engine.description
    engine.freeze(2)
    assert engine.description.endswith("2 units frozen")
