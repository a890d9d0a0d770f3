"""What every network promises with every kind of masters: learned, saved, exported and served."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import engines.conv_norm
import engines.dense
import engines.masters
from engines import (
    LookAhead,
    Optimizer,
    Recipe,
    WeightsError,
    open_predict_engine,
    open_train_engine,
    weights_from_bytes,
    weights_to_bytes,
)
from engines.base import CANARY_ROWS, expected_arrays
from engines.feature import Feature
from engines.fusion import Fusion
from engines.precision import PRECISIONS
from engines.predict_units import open_predict_unit
from engines.recipe import MASTER_NAMES
from engines.standardize import standardize
from tests import reference
from tests.contracts import bits
from tests.networks import CLASSES, Twin
from tests.networks import TINY as NETWORKS

INT8 = PRECISIONS["int8"]

STEP = {"learning_rate": 2e-3, "look_ahead_weight": 0.5}
LABELS = tuple("abcde")
CASES = [(name, masters) for name in NETWORKS for masters in MASTER_NAMES]
every_case = pytest.mark.parametrize(("name", "masters"), CASES)
every_network = pytest.mark.parametrize("name", NETWORKS)


def samples(name: str, rows: int, seed: int = 0):
    """Five clouds, with an offset and a unit of their own."""
    spec, rng = NETWORKS[name], np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, *spec.input_shape))
    labels = rng.integers(0, CLASSES, rows)
    x = centres[labels] + rng.normal(size=(rows, *spec.input_shape))
    return (40 * x + 128).astype(np.float32), labels


def opened(name: str, masters: str = "float32", seed: int = 1):
    recipe = Recipe(masters=masters, look_ahead=LookAhead("discounted"))
    return open_train_engine(NETWORKS[name], seed=seed, recipe=recipe)


def learned(engine, name: str, steps: int = 2, rows: int = 10):
    engine.standardize_from(samples(name, 64)[0])
    for step in range(steps):
        report = engine.train_step(*samples(name, rows, seed=step), **STEP)
        assert report.finite
    return engine


def export(engine, classes=LABELS):
    return engine.export(classes=classes, version=1, parent=None, last_seq=0)


@functools.cache
def exported(name: str):
    return export(learned(opened(name), name))


# --- learning -----------------------------------------------------------------------------------


@every_case
def test_a_state_in_a_fresh_engine_takes_the_same_next_step_bit_for_bit(name, masters):
    first = learned(opened(name, masters), name)
    state = first.state()
    kept = bits(state)
    fresh = opened(name, masters)
    fresh.load_state(state)
    reports = [e.train_step(*samples(name, 9, seed=50), **STEP) for e in (first, fresh)]
    assert reports[0] == reports[1]
    assert bits(first.state()) == bits(fresh.state())
    assert bits(state) == kept  # neither engine holds what it was given
    assert bits(first.state()) != kept


def test_states_in_a_new_process_take_the_same_next_step_bit_for_bit(tmp_path):
    cases = [(name, MASTER_NAMES[i % 3]) for i, name in enumerate(NETWORKS)]
    engines = {name: learned(opened(name, masters), name) for name, masters in cases}
    for name, engine in engines.items():
        x, labels = samples(name, 9, seed=50)
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels, **engine.state())
    described = [(n, m, NETWORKS[n].to_json()) for n, m in cases]
    script = f"""if True:
        import json
        import numpy as np
        from engines import LookAhead, Recipe, open_train_engine
        from models import ModelSpec
        for name, masters, spec in json.loads({json.dumps(described)!r}):
            state = dict(np.load(name + ".npz"))
            x, labels = state.pop("x"), state.pop("labels")
            recipe = Recipe(masters=masters, look_ahead=LookAhead("discounted"))
            engine = open_train_engine(ModelSpec.from_json(spec), seed=1, recipe=recipe)
            engine.load_state(state)
            engine.train_step(x, labels, **{STEP})
            np.savez(name + ".after.npz", **engine.state())
    """
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    command = [sys.executable, "-c", threads + script]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, cwd=tmp_path, env=here, check=True, timeout=100)
    for name, engine in engines.items():
        engine.train_step(*samples(name, 9, seed=50), **STEP)
        assert bits(dict(np.load(tmp_path / f"{name}.after.npz"))) == bits(engine.state()), name


@every_case
def test_training_changes_no_input_and_every_weight(name, masters):
    x, labels = samples(name, 10)
    kept_x, kept_labels = x.copy(), labels.copy()
    engine = opened(name, masters)
    before = engine.state()
    learned(engine, name, steps=2)
    engine.train_step(x, labels, **STEP)
    np.testing.assert_array_equal(x, kept_x)
    np.testing.assert_array_equal(labels, kept_labels)
    after = engine.state()
    for key in before:
        if key.endswith((".gamma", ".beta", ".bias", "weight.weight", "weight.codes", ".mean")):
            assert (before[key] != after[key]).any(), key


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("masters", MASTER_NAMES)
def test_weights_decay_and_what_is_small_does_not(name, optimizer, masters):
    states = []
    for decay in (0.0, 10.0):
        recipe = Recipe(masters=masters, optimizer=Optimizer(optimizer, decay))
        engine = open_train_engine(NETWORKS[name], seed=1, recipe=recipe)
        engine.standardize_from(samples(name, 64)[0])
        engine.train_step(*samples(name, 10), learning_rate=1e-3, look_ahead_weight=0.0)
        states.append(engine.state())
    for key in states[0]:
        if key.startswith("parameters."):
            np.testing.assert_array_equal(states[0][key], states[1][key])
    key = "units.0.weight" if name == "mlp" else "units.0.conv.weight"
    if masters == "float32":
        sizes = [np.linalg.norm(state[f"{key}.weight"]) for state in states]
    else:
        sizes = [np.linalg.norm(state[f"{key}.codes"] * state[f"{key}.scale"]) for state in states]
    # A hundredth of each weight is lost in a step; the step itself is the same.
    assert sizes[1] / sizes[0] == pytest.approx(0.99, abs=4e-3)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8), r"shape \[3, 8\] per sample, the model needs \[[23], "),
        ((2, 8, 8, 3), r"shape \[8, 8, 3\] per sample, the model needs \[[23], "),
    ],
)
def test_a_bad_picture_is_named_and_changes_nothing(name, shape, message):
    engine = learned(opened(name), name)
    before = bits(engine.state())
    with pytest.raises(ValueError, match=message):
        engine.train_step(np.zeros(shape, np.float32), np.array([0, 1]), **STEP)
    assert bits(engine.state()) == before


@every_network
def test_no_two_tensors_of_a_run_share_their_noise(name, monkeypatch):
    keys = []
    for module in (engines.conv_norm, engines.dense, engines.masters):
        original = module.noise

        def spy(rows, columns, key, device, original=original):
            keys.append(key)
            return original(rows, columns, key, device)

        monkeypatch.setattr(module, "noise", spy)
    for seed in (1, 2):
        engine = opened(name, "int8", seed)
        for _ in range(2):
            engine.train_step(*samples(name, 4), **STEP)
    layers = sum(len(unit.layers) for unit in NETWORKS[name].units)
    # Two runs of two steps; in each, an error and an update for every layer.
    assert len({key.word() for key in keys}) == len(keys) == 2 * 2 * 2 * layers


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_a_state_of_other_masters_is_refused(name):
    engines = {masters: opened(name, masters) for masters in MASTER_NAMES}
    for one, engine in engines.items():
        for other in engines:
            if one != other:
                with pytest.raises(WeightsError, match="training state is of another model: "):
                    engine.load_state(engines[other].state())


@pytest.mark.parametrize(
    ("name", "masters"), [*(("resnet8", m) for m in MASTER_NAMES), ("efficientnet_b0", "int8")]
)
def test_an_int8_network_of_convolutions_learns(name, masters):
    engine = opened(name, masters)
    engine.standardize_from(samples(name, 200)[0])
    for step in range(30):
        engine.train_step(*samples(name, 24, seed=step), learning_rate=5e-3, look_ahead_weight=0.5)
    x, labels = samples(name, 200, seed=10_000)
    with open_predict_engine("torch").open(export(engine)) as served:
        right = (served.predict(x).class_index == labels).mean()
    # The clouds hardly overlap; chance is 20 %.
    assert right >= 0.9


# --- export and serving -------------------------------------------------------------------------


@every_case
def test_what_is_exported_is_what_is_expected(name, masters):
    weights = export(learned(opened(name, masters), name, steps=1))
    expected = expected_arrays(NETWORKS[name])
    assert {n: (a.dtype.type, a.shape) for n, a in weights.arrays.items()} == expected
    weights.check()
    back = weights_from_bytes(weights_to_bytes(weights))
    assert bits(back.arrays) == bits(weights.arrays)


@every_network
def test_untrained_weights_may_serve(name):
    weights = export(opened(name), classes=())
    with open_predict_engine("torch").open(weights) as engine:
        answer = engine.predict(samples(name, 3)[0])
    assert answer.class_index.tolist() == [-1] * 3
    assert np.isfinite(answer.goodness).all()


@pytest.mark.parametrize("masters", ["int16", "int8"])
@every_network
def test_integer_masters_are_served_as_they_are(name, masters):
    engine = learned(opened(name, masters), name)
    state, arrays = engine.state(), export(engine).arrays
    for key, codes in arrays.items():
        if not key.endswith(".weight.codes"):
            continue
        unit, part = key.removeprefix("units.").removesuffix("weight.codes").split(".", 1)
        held = state[f"units.{unit}.{part}weight.codes"]
        gamma = state.get(f"parameters.units.{unit}.{part}gamma", np.ones(len(held)))
        np.testing.assert_array_equal(codes, held * np.where(gamma < 0, -1, 1)[:, None])


@every_network
def test_the_canary_is_reproduced_exactly(name):
    weights, spec = exported(name), NETWORKS[name]
    canary = weights.arrays["canary.input"].reshape(CANARY_ROWS, *spec.input_shape)
    with open_predict_engine("torch").open(weights) as engine:
        found = engine.predict(canary).goodness
    np.testing.assert_array_equal(found, weights.arrays["canary.goodness"])
    assert len(np.unique(found)) > CANARY_ROWS


@every_network
@pytest.mark.parametrize("rows", [0, 1, 7, 17])
def test_an_answer_does_not_depend_on_the_rest_of_its_batch(name, rows):
    x = samples(name, 40)[0]
    x[30] = 1e6  # an outlier would stretch a scale taken from the batch
    kept = x.copy()
    with open_predict_engine("torch").open(exported(name)) as engine:
        whole, part = engine.predict(x), engine.predict(x[:rows])
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(part.goodness, whole.goodness[:rows])
    np.testing.assert_array_equal(part.class_index, whole.class_index[:rows])


@functools.cache
def well_learned(name: str):
    engine = opened(name)
    engine.standardize_from(samples(name, 200)[0])
    for step in range(20):
        engine.train_step(*samples(name, 24, seed=step), learning_rate=5e-3, look_ahead_weight=0.5)
    return engine.state(), export(engine)


@pytest.mark.parametrize("name", ["mlp", "resnet8", "resnet18"])
def test_answers_are_those_of_the_float_network_in_eval_mode(name):
    state, weights = well_learned(name)
    x = samples(name, 200, seed=10_000)[0]
    wanted = Twin(NETWORKS[name], state).served(state).answers(x, weights.arrays)
    with open_predict_engine("torch").open(weights) as served:
        found = served.predict(x)
    # Nine units deep and a few channels wide: 16 dB; the others 31.
    assert reference.snr_db(found.goodness, wanted) >= 12
    assert (found.class_index == wanted.argmax(axis=1)).mean() >= 0.97


@every_network
@torch.no_grad()
def test_every_unit_serves_as_the_float_unit_in_eval_mode_does(name):
    """One unit at a time, so that nothing but its own rounding is compared."""
    spec, (state, weights) = NETWORKS[name], well_learned(name)
    twin = Twin(spec, state).served(state)
    arrays = {n: torch.from_numpy(np.array(a)) for n, a in weights.arrays.items()}
    mean, std = arrays["input.mean"], arrays["input.std"]
    rows = standardize(torch.from_numpy(samples(name, 100, seed=1)[0]).flatten(1), mean, std)
    x = rows
    if "input.scale" in arrays:
        images = rows.view(-1, *spec.input_shape).permute(0, 2, 3, 1)
        x = Feature(INT8.quantize(images, arrays["input.scale"]), arrays["input.scale"])
    for u, unit in enumerate(spec.units):
        given = x if isinstance(x, torch.Tensor) else x.dequantize(INT8).permute(0, 3, 1, 2)
        prefix = f"units.{u}."
        own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        activity, x = open_predict_unit(unit, own, INT8, Fusion("eager", "a test")).forward(x)
        wanted = twin.model.units[u](given.double())
        if wanted.ndim == 4:
            wanted = wanted.permute(0, 2, 3, 1)
        # Weights, two inner activities and a gate of 127 steps each, and what fixed scales clip of
        # samples that they have not seen: 18 to 40 dB.
        assert reference.snr_db(activity, wanted) >= 15, f"unit {u}"
