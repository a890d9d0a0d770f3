"""What every training engine promises: one suite, run over each of them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from engines import Recipe, WeightsError, open_train_engine
from tests import reference
from tests.contracts import CLASSES, SPEC, STEP, TRAIN_ENGINES, bits, exported, learned, samples


@pytest.fixture(params=TRAIN_ENGINES)
def open_train(request):
    return TRAIN_ENGINES[request.param]


# --- learning ------------------------------------------------------------------------------------


def test_training_does_not_change_its_inputs(open_train):
    x, labels = samples(24)
    kept_x, kept_labels = x.copy(), labels.copy()
    engine = open_train(SPEC)
    engine.standardize_from(x)
    engine.train_step(x, labels, **STEP)
    np.testing.assert_array_equal(x, kept_x)
    np.testing.assert_array_equal(labels, kept_labels)


def test_same_seed_and_samples_give_the_same_bits(open_train):
    assert bits(learned(open_train(SPEC)).state()) == bits(learned(open_train(SPEC)).state())
    assert bits(learned(open_train(SPEC)).state()) != bits(learned(open_train(SPEC, 2)).state())


def test_state_in_a_fresh_engine_takes_the_same_next_step(open_train):
    first = learned(open_train(SPEC))
    fresh = open_train(SPEC)
    fresh.load_state(first.state())
    reports = [engine.train_step(*samples(24, seed=50), **STEP) for engine in (first, fresh)]
    assert reports[0] == reports[1]
    assert bits(first.state()) == bits(fresh.state())


def test_state_in_a_new_process_takes_the_same_next_step(tmp_path):
    engine = learned(open_train_engine(SPEC, seed=1))
    x, labels = samples(24, seed=50)
    np.savez(tmp_path / "before.npz", x=x, labels=labels, **engine.state())
    script = f"""if True:
        import numpy as np
        from engines import open_train_engine
        from models import ModelSpec
        state = dict(np.load("before.npz"))
        x, labels = state.pop("x"), state.pop("labels")
        engine = open_train_engine(ModelSpec.from_json({SPEC.to_json()}), seed=1)
        engine.load_state(state)
        engine.train_step(x, labels, **{STEP})
        np.savez("after.npz", **engine.state())
    """
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    engine.train_step(x, labels, **STEP)
    assert bits(dict(np.load(tmp_path / "after.npz"))) == bits(engine.state())


def test_state_is_a_copy(open_train):
    engine = learned(open_train(SPEC))
    state = engine.state()
    kept = bits(state)
    learned(engine)
    assert bits(state) == kept
    assert bits(engine.state()) != kept


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"input_shape": (7,)}, "input.mean"),
        ({"hidden": (24, 21, 17)}, r"units.1.weight"),
        ({"hidden": (24, 20)}, "units.2"),
        ({"hidden": (24, 20, 17, 17)}, "units.3"),
    ],
)
def test_state_of_another_network_is_refused_by_name(open_train, change, name):
    engine = learned(open_train(SPEC))
    before = bits(engine.state())
    other = open_train(dataclasses.replace(SPEC, **change))
    with pytest.raises(WeightsError, match=name):
        engine.load_state(other.state())
    assert bits(engine.state()) == before


def test_state_without_the_step_is_refused_by_name(open_train):
    engine, state = open_train(SPEC), learned(open_train(SPEC)).state()
    del state["step"]
    before = bits(engine.state())
    with pytest.raises(WeightsError, match="step"):
        engine.load_state(state)
    assert bits(engine.state()) == before


@pytest.mark.parametrize(
    ("x_shape", "labels", "message"),
    [
        ((3, 7), [0, 1, 2], r"shape \[7\] per sample, the model needs \[6\]"),
        ((3, 2, 3), [0, 1, 2], r"shape \[2, 3\] per sample, the model needs \[6\]"),
        ((3, 6), [0, 1], r"labels are int64 \[2\], wanted int64 \[3\]"),
        ((3, 6), [0, 1, 4], r"labels lie in 0\.\.4, wanted 0\.\.3"),
        ((3, 6), [0, -1, 2], r"labels lie in -1\.\.2, wanted 0\.\.3"),
        ((3, 6), [[0], [1], [2]], r"labels are int64 \[3, 1\], wanted int64 \[3\]"),
        ((0, 6), [], "at least 1"),
        ((3, 6), [0.0, 1.0, 2.0], "labels are float64"),
    ],
)
def test_a_bad_batch_is_named_and_changes_nothing(open_train, x_shape, labels, message):
    engine = learned(open_train(SPEC))
    before = bits(engine.state())
    with pytest.raises(ValueError, match=message):
        engine.train_step(np.zeros(x_shape, np.float32), np.array(labels), **STEP)
    assert bits(engine.state()) == before


def batch_with_places(seed: int):
    x, labels = samples(24, seed=seed)
    places = np.random.default_rng(seed).random((24, 4)) < 0.5
    places[np.arange(24), labels] = True
    return x, labels, places


def test_places_decide_what_is_learned_and_all_of_them_are_none(open_train):
    x, labels, places = batch_with_places(50)
    states = []
    for own in (None, np.broadcast_to(np.True_, (24, 4)), places):
        kept = None if own is None else own.copy()
        engine = learned(open_train(SPEC))
        report = engine.train_step(x, labels, **STEP, places=own)
        states.append((report, bits(engine.state())))
        assert own is None or np.array_equal(own, kept)
    assert states[0] == states[1]
    assert states[0] != states[2]


def test_with_places_too_a_state_in_a_fresh_engine_takes_the_same_next_step(open_train):
    first, fresh = learned(open_train(SPEC)), open_train(SPEC)
    x, labels, places = batch_with_places(49)
    first.train_step(x, labels, **STEP, places=places)
    fresh.load_state(first.state())
    x, labels, places = batch_with_places(50)
    reports = [engine.train_step(x, labels, **STEP, places=places) for engine in (first, fresh)]
    assert reports[0] == reports[1]
    assert bits(first.state()) == bits(fresh.state())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (np.ones((3, 3), np.bool_), r"places are bool \[3, 3\], wanted bool \[3, 4\]"),
        (np.ones((2, 4), np.bool_), r"places are bool \[2, 4\], wanted bool \[3, 4\]"),
        (np.ones(4, np.bool_), r"places are bool \[4\], wanted bool \[3, 4\]"),
        (np.ones((3, 4)), r"places are float64 \[3, 4\], wanted bool \[3, 4\]"),
        (np.zeros((3, 4), np.bool_), "own place is left out in 3 of 3 rows"),
        (np.arange(4) != np.array([3, 1, 3])[:, None], "own place is left out in 1 of 3 rows"),
    ],
)
def test_bad_places_are_named_and_change_nothing(open_train, places, message):
    engine = learned(open_train(SPEC))
    before = bits(engine.state())
    with pytest.raises(ValueError, match=message):
        engine.train_step(np.ones((3, 6), np.float32), np.array([0, 1, 2]), **STEP, places=places)
    assert bits(engine.state()) == before


def test_losses_are_those_before_the_update_and_say_when_they_are_no_numbers(open_train):
    engine, (x, labels) = open_train(SPEC), samples(24)
    kept = engine.state()
    report = engine.train_step(x, labels, **STEP)
    engine.load_state(kept)
    assert engine.train_step(x, labels, learning_rate=0.0, look_ahead_weight=0.0) == report
    assert len(report.losses) == len(SPEC.hidden)
    assert report.finite
    engine.train_step(x, labels, learning_rate=1e38, look_ahead_weight=0.0)
    diverged = bits(engine.state())
    assert not engine.train_step(x, labels, **STEP).finite
    weights = {name for name in diverged if "scale" not in name}
    assert {n: bits(engine.state())[n] for n in weights} == {n: diverged[n] for n in weights}


def test_an_input_that_is_no_number_is_refused(open_train):
    engine, (x, labels) = open_train(SPEC), samples(24)
    x[5, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        engine.train_step(x, labels, **STEP)


# --- standardisation --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 3, 4)])
def test_standardize_per_feature_of_a_vector_and_per_channel_otherwise(open_train, shape):
    x = np.random.default_rng(0).gamma(2, 30, size=(50, *shape)).astype(np.float32)
    engine = open_train(dataclasses.replace(SPEC, input_shape=shape))
    engine.standardize_from(x)
    state, rows = engine.state(), x.astype(np.float64)
    values = np.sort(np.swapaxes(rows, 0, 1).reshape(shape[0], -1), axis=1)
    cut = values.shape[1] // 100  # winsorised: a hundredth on each side counts as its innermost
    values = np.clip(values, values[:, [cut]], values[:, [-1 - cut]])
    for name, wanted in (("mean", values.mean(axis=1)), ("std", values.std(axis=1))):
        spread = np.broadcast_to(wanted.reshape(-1, *[1] * (len(shape) - 1)), shape).ravel()
        # Computed in float64, kept in float32.
        np.testing.assert_allclose(state[f"input.{name}"], spread, rtol=1e-5)


@pytest.mark.parametrize("glitch", [1e10, -1e20, 3e38])
def test_a_glitch_in_the_first_block_does_not_flatten_what_follows(open_train, glitch):
    x = samples(128)[0]
    clean, spoiled = open_train(SPEC), open_train(SPEC)
    clean.standardize_from(x)
    x[17, 3] = glitch
    spoiled.standardize_from(x)
    for name in ("input.mean", "input.std"):
        # One value of 128 is another, within the range of the rest.
        np.testing.assert_allclose(spoiled.state()[name], clean.state()[name], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -255.3, 1e4 / 3])
@pytest.mark.parametrize("last_bit_flickers", [False, True])
def test_a_constant_feature_keeps_deviation_one(open_train, value, last_bit_flickers):
    x = samples(100)[0]
    x[:, 2] = value
    if last_bit_flickers and value:
        x[::3, 2] = np.nextafter(np.float32(value), np.float32(np.inf))
    engine = open_train(SPEC)
    engine.standardize_from(x)
    std = engine.state()["input.std"]
    assert std[2] == 1
    assert (np.delete(std, 2) != 1).all()


# --- export --------------------------------------------------------------------------------------


def test_export_carries_lineage_and_is_a_copy():
    learner = learned(open_train_engine(SPEC, seed=1))
    weights = learner.export(classes=CLASSES, version=3, parent=2, last_seq=77)
    weights.check()
    assert (weights.version, weights.parent, weights.last_seq) == (3, 2, 77)
    kept = bits(weights.arrays)
    learned(learner)
    assert bits(weights.arrays) == kept


def test_exported_codes_are_the_masters_quantized_per_output_channel():
    learner = learned(open_train_engine(SPEC, seed=1))
    state, arrays = learner.state(), exported().arrays
    for unit in range(len(SPEC.hidden)):
        master = state[f"units.{unit}.weight.weight"]
        scale = reference.absmax_scale(master, 1)
        np.testing.assert_array_equal(arrays[f"units.{unit}.weight.scale"], scale)
        codes = reference.quantize(master, scale)
        np.testing.assert_array_equal(arrays[f"units.{unit}.weight.codes"], codes)


def test_the_serving_scale_of_an_input_follows_the_batches_slowly():
    engine = open_train_engine(SPEC, seed=1)
    wanted = None
    for step in range(4):
        x, labels = samples(24, seed=step)
        x = np.clip(x / 20, -4, 4)  # unstandardised: what the first unit quantizes
        engine.train_step(x, labels, **STEP)
        scale = float(reference.absmax_scale(x))
        wanted = scale if wanted is None else wanted + 0.05 * (scale - wanted)
        # One float32 rounding a step.
        assert engine.state()["units.0.input_scale"] == pytest.approx(wanted, rel=1e-6)


def test_an_outlier_does_not_stretch_the_scale_beyond_four_deviations():
    engine = learned(open_train_engine(SPEC, seed=1), steps=0)
    x, labels = samples(24)
    x[3, 1] = 1e6
    engine.train_step(x, labels, **STEP)
    assert engine.state()["units.0.input_scale"] == np.float32(4) / np.float32(127)


def test_fp32_is_not_exported():
    engine = open_train_engine(SPEC, seed=1, recipe=Recipe(precision="fp32"))
    with pytest.raises(WeightsError, match="only int8 networks are exported"):
        engine.export(classes=CLASSES, version=1, parent=None, last_seq=0)
