"""Latents: what serving makes of a prefix, and steps that are taken from it, now or later."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from engines import Latent, LookAhead, Recipe, open_predict_engine, open_train_engine
from engines.feature import Feature
from engines.fusion import Fusion
from engines.precision import PRECISIONS
from engines.predict_units import FirstUnit, open_predict_unit
from engines.rule import open_rule
from models import ModelSpec
from models.base import length_normalize
from tests import contracts, reference
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
    served,
    trained,
)
from tests.networks import Twin, as_matrix, batch_of, opened, sgd_gradients

INT8, EAGER = PRECISIONS["int8"], Fusion("eager", "a test")

# --- what a latent is -----------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_latents_are_the_serving_engines_to_the_bit_before_and_after_the_suffix_learns(name, where):
    engine, spec = trained(name), NETWORKS[name]
    units = {"first": 1, "middle": middle(name), "last": len(spec.units) - 1}[where]
    x, _ = batch_of(spec, 7)
    engine.freeze(units)
    for _ in range(2):
        with served(engine) as serving:
            wanted = serving.latent(x, units)
        found = engine.latent(x)
        assert found.codes.tobytes() == wanted.codes.tobytes()
        assert found.scale == wanted.scale
        assert found.codes.dtype == np.int8
        assert found.scale.dtype == np.float32
        assert found.codes.shape == (7, *spec.units[units - 1].output_shape)
        assert len(np.unique(found.codes)) > 10
        learned(engine, spec, 1)


@pytest.mark.parametrize("units", [1, 2, 3])
def test_a_dense_latent_equals_the_oracle(units):
    arrays = exported(trained("mlp")).arrays
    x, _ = batch_of(MLP, 40)
    engine = trained("mlp")
    engine.freeze(units)
    found = engine.latent(x)
    x = np.clip((x - arrays["input.mean"]) / arrays["input.std"], -4, 4)
    for unit in range(units):
        scale_in, scale, codes, bias = (
            arrays[f"units.{unit}.{part}"]
            for part in ("input_scale", "weight.scale", "weight.codes", "bias")
        )
        product = reference.int_matmul(reference.quantize(x, scale_in), codes.T)
        y = np.maximum(product * (scale_in * scale.T.astype(np.float64)) + bias, 0)
        x, _ = reference.length_normalize(y)
    assert found.scale == arrays[f"units.{units}.input_scale"]
    off = np.abs(found.codes - reference.quantize(x, found.scale).astype(np.int32))
    # Where float32 and float64 fall on two sides of a rounding, one code of 127 differs.
    assert off.max() <= 1
    assert off.mean() < 0.01


@every_network
def test_a_network_that_goes_on_from_latents_answers_as_the_whole_one_does(name):
    spec, engine = NETWORKS[name], trained(name)
    units = 1 if name == "mlp" else middle(name)  # all that judge lie behind it
    weights, (x, _) = exported(engine), batch_of(spec, 9)
    with open_predict_engine("torch").open(weights) as serving:
        whole, latent = serving.predict(x).goodness, serving.latent(x, units)
    arrays = {n: torch.from_numpy(a.copy()) for n, a in weights.arrays.items()}
    head = {part: arrays[f"head.{part}"] for part in ("weight", "bias") if f"head.{part}" in arrays}
    rule, judged = open_rule(spec, Recipe()), []
    a = Feature(torch.from_numpy(latent.codes), torch.from_numpy(latent.scale))
    for index in range(units, len(spec.units)):
        prefix = f"units.{index}."
        own = {n.removeprefix(prefix): t for n, t in arrays.items() if n.startswith(prefix)}
        unit = open_predict_unit(spec.units[index], own, INT8, EAGER)
        if index == units and isinstance(unit, FirstUnit):
            answered = unit.answer(unit.accumulator(a), a.scale)
        else:
            answered = unit.forward(a)
        a = answered.output
        if index in rule.judges:
            judged.append(rule.heads[index].goodness(answered.activity, head))
    assert torch.stack(judged).mean(dim=0).numpy().tobytes() == whole.tobytes()


# --- latent replay -------------------------------------------------------------------------------


@every_kind
def test_steps_on_kept_latents_are_those_on_their_samples_bit_for_bit(name, masters):
    spec, units = NETWORKS[name], middle(name)
    x, labels = batch_of(spec, 18)
    direct, replayed = trained(name, masters), trained(name, masters)
    direct.freeze(units)
    serving = served(replayed)
    replayed.freeze(units, serving)
    # Kept one sample at a time, as they arrive, in memory that is not ours to write.
    kept = [replayed.latent(x[i : i + 1]) for i in range(len(x))]
    codes = np.concatenate([latent.codes for latent in kept])
    serving.close()  # from here on the prefix cannot run
    for step in range(3):
        rows = np.random.default_rng(step).permutation(len(x))[:6]
        latent = Latent(codes[rows], kept[0].scale)
        latent.codes.flags.writeable = False
        reports = (
            direct.train_step(x[rows], labels[rows], **STEP),
            replayed.train_latent_step(latent, labels[rows], **STEP),
        )
        assert reports[0] == reports[1]
        assert len(reports[0].losses) == len(spec.units) - units
    assert bits(direct.state()) == bits(replayed.state())
    assert bits(exported(direct).arrays) == bits(exported(replayed).arrays)


@every_network
def test_a_step_on_latents_with_places_is_that_on_their_samples_bit_for_bit(name):
    spec, (x, labels) = NETWORKS[name], batch_of(NETWORKS[name], 6)
    places = (np.arange(spec.max_classes) < 2) | (np.arange(spec.max_classes) == labels[:, None])
    engines = [trained(name) for _ in range(3)]
    for engine in engines:
        engine.freeze(middle(name))
    direct, replayed, unmasked = engines
    latent = replayed.latent(x)
    reports = (
        direct.train_step(x, labels, **STEP, places=places),
        replayed.train_latent_step(latent, labels, **STEP, places=places),
        unmasked.train_latent_step(latent, labels, **STEP),
    )
    assert reports[0] == reports[1] != reports[2]
    assert bits(direct.state()) == bits(replayed.state()) != bits(unmasked.state())
    with pytest.raises(ValueError, match="own place is left out in 6 of 6 rows"):
        replayed.train_latent_step(latent, labels, **STEP, places=places & False)


def test_a_latent_step_changes_neither_latents_nor_labels():
    engine, (x, labels) = trained("resnet8"), batch_of(NETWORKS["resnet8"], 6)
    engine.freeze(2)
    latent = engine.latent(x)
    kept = latent.codes.copy(), latent.scale.copy(), labels.copy()
    engine.train_latent_step(latent, labels, **STEP)
    for array, was in zip((*latent, labels), kept, strict=True):
        np.testing.assert_array_equal(array, was)


def test_latents_outlive_further_freezing_and_are_no_view_of_the_engine():
    engine, (x, _) = trained("mlp"), batch_of(MLP, 5)
    engine.freeze(1)
    latent = engine.latent(x)
    latent.scale[...] = 7
    latent.codes[...] = 0
    assert engine.latent(x).scale != 7
    assert engine.latent(x).codes.any()


def test_replay_of_latents_alone_makes_a_network_that_serves_well():
    spec = contracts.SPEC
    engine = contracts.learned(open_train_engine(spec, seed=1), steps=15)
    x, labels = contracts.samples(600, seed=3)
    tests, right = contracts.samples(500, seed=10_000)

    def accuracy() -> float:
        weights = engine.export(classes=contracts.CLASSES, version=1, parent=None, last_seq=0)
        with open_predict_engine("torch").open(weights) as serving:
            return (serving.predict(tests).class_index == right).mean()

    engine.freeze(1)
    before, memory = accuracy(), engine.latent(x)
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = rng.integers(0, len(x), 32)
        engine.train_latent_step(
            Latent(memory.codes[rows], memory.scale), labels[rows], **contracts.STEP
        )
    # Overlap, and a first unit that has seen 15 batches; chance is 25 %.
    assert accuracy() >= 0.95
    assert accuracy() > before + 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, s: (c[:, :-1], s), r"latents are int8 \[16\] per sample, .* give int8 \[17\]"),
        (lambda c, s: (c[:, None], s), r"latents are int8 \[1, 17\] per sample"),
        (lambda c, s: (c.astype(np.int32), s), r"latents are int32 \[17\] per sample"),
        (lambda c, s: (np.full_like(c, -128), s), "hold the code -128"),
        (lambda c, s: (c, np.nextafter(s, np.float32(9))), "made by other weights"),
        (lambda c, s: (c, np.float32(np.nan)), "made by other weights"),
        (lambda c, s: (c[:-1], s), r"labels are int64 \[6\], wanted int64 \[5\]"),
        (lambda c, s: (c[:0], s), "at least 1"),
    ],
)
def test_bad_latents_are_named_and_change_nothing(change, message):
    engine, (x, labels) = trained("mlp"), batch_of(MLP, 6)
    engine.freeze(2)
    before, latent = bits(engine.state()), engine.latent(x)
    with pytest.raises(ValueError, match=message):
        engine.train_latent_step(Latent(*change(*latent)), labels, **STEP)
    assert bits(engine.state()) == before


# --- the step of the suffix ----------------------------------------------------------------------


def twin_gradients(spec: ModelSpec, units: int, state, latent: Latent, labels, weight: float):
    """Of the float twin's units behind the prefix, in float64, from the latents' values."""
    twin, heads = Twin(spec, state), open_rule(spec, Recipe()).heads
    a = torch.from_numpy(latent.codes.astype(np.float64) * latent.scale)
    a = a if a.ndim == 2 else a.permute(0, 3, 1, 2)
    losses, found = [], {}
    for index in range(units, len(spec.units)):
        y = twin.model.units[index](a)
        channels_last = y if y.ndim == 2 else y.permute(0, 2, 3, 1)
        goodness = heads[index].goodness(channels_last, twin.heads[index])
        sharpness = 5.0 if y.ndim == 2 else 1.0
        losses.append(cross_entropy(sharpness * goodness, torch.from_numpy(labels)))
        a = length_normalize(y)[0] if y.ndim == 2 else y
    for place, index in enumerate(range(units, len(spec.units))):
        total = losses[place] + weight * sum(losses[place + 1 :])
        own = {n: leaf for n, leaf in twin.leaves.items() if n.startswith(f"units.{index}.")}
        grads = torch.autograd.grad(total, [*own.values()], retain_graph=True)
        for name, grad in zip(own, grads, strict=True):
            found[name] = (as_matrix(grad) if grad.ndim == 4 else grad).numpy()
    return [loss.item() for loss in losses], found


# Errors are rounded to int8 where they enter a product; a norm divides by what nearly cancels.
@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize(("name", "tolerance"), [("mlp", 0.08), ("resnet8", 0.4)])
def test_the_suffix_learns_from_own_and_later_losses_as_its_float_twin(name, units, tolerance):
    spec, (x, labels) = NETWORKS[name], batch_of(NETWORKS[name], 64)
    found, wanted = {}, {}
    for weight in (0.0, 0.6):
        engine = learned(opened(spec, "int8", LookAhead()), spec, 1)
        state = engine.state()
        engine.load_state({n: a * (not n.endswith("momentum")) for n, a in state.items()})
        engine.freeze(units)
        latent = engine.latent(x)
        losses, wanted[weight] = twin_gradients(spec, units, state, latent, labels, weight)
        found_losses, found[weight] = sgd_gradients(engine, (x, labels), weight)
        np.testing.assert_allclose(found_losses, losses, rtol=0.01)
        for name, gradient in wanted[weight].items():
            assert reference.relative_error(found[weight][name], gradient) < tolerance, name
    for name in wanted[0.0]:
        if not name.startswith(f"units.{len(spec.units) - 1}."):
            right, wrong = (
                reference.relative_error(found[0.6][name], wanted[w][name]) for w in (0.6, 0.0)
            )
            assert right < wrong, name


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("units", [1, 2, 3])
def test_products_of_a_latent_step_are_those_of_the_suffix(units, weight, monkeypatch):
    engine, (x, labels) = trained("mlp"), batch_of(MLP, 19)
    engine.freeze(units)
    latent, calls = engine.latent(x), []

    def counted(name: str):
        product = getattr(type(INT8), name)

        def count(self, *args):
            calls.append(name)
            return product(self, *args)

        return count

    for name in ("linear", "linear_grad_weight", "linear_grad_input"):
        monkeypatch.setattr(type(INT8), name, counted(name))
    engine.train_latent_step(latent, labels, learning_rate=0.01, look_ahead_weight=weight)
    learning = len(MLP.units) - units
    assert calls.count("linear") == learning
    assert calls.count("linear_grad_weight") == learning
    assert calls.count("linear_grad_input") == (learning - 1 if weight > 0 else 0)
    calls.clear()
    engine.train_step(x, labels, learning_rate=0.01, look_ahead_weight=weight)
    assert calls.count("linear") == len(MLP.units)
