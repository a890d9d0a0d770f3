"""What every prediction engine promises: one suite, run over each of them."""

from __future__ import annotations

import numpy as np
import pytest

from engines import open_train_engine
from engines.base import CANARY_ROWS
from models import ModelSpec
from tests import reference
from tests.contracts import CLASSES, PREDICT_ENGINES, SPEC, STEP, bits, exported, learned, samples


@pytest.fixture(params=PREDICT_ENGINES)
def open_predict(request):
    return PREDICT_ENGINES[request.param]


def test_the_canary_is_reproduced(open_predict):
    weights = exported()
    assert weights.arrays["canary.input"].shape == (CANARY_ROWS, 6)
    with open_predict(weights) as engine:
        found = engine.predict(weights.arrays["canary.input"]).goodness
    # Sums of float32 in another order.
    np.testing.assert_allclose(found, weights.arrays["canary.goodness"], rtol=1e-6, atol=1e-6)
    assert len(np.unique(found)) > CANARY_ROWS


def test_the_engine_that_the_learner_asks_reproduces_the_canary_exactly():
    weights = exported()
    with PREDICT_ENGINES["torch"](weights) as engine:
        found = engine.predict(weights.arrays["canary.input"]).goodness
    np.testing.assert_array_equal(found, weights.arrays["canary.goodness"])


def oracle_goodness(weights, x):
    """Mean class goodness over all units but the first, or of the only one; float64 epilogues."""
    arrays, spec, judged = weights.arrays, weights.spec, []
    x = np.clip((x - arrays["input.mean"]) / arrays["input.std"], -4, 4)
    for unit in range(len(spec.hidden)):
        input_scale, scale, codes, bias = (
            arrays[f"units.{unit}.{name}"]
            for name in ("input_scale", "weight.scale", "weight.codes", "bias")
        )
        product = reference.int_matmul(reference.quantize(x, input_scale), codes.T)
        y = np.maximum(product * (input_scale * scale.T.astype(np.float64)) + bias, 0)
        judged.append(reference.class_goodness(y, spec.max_classes))
        x, _ = reference.length_normalize(y)
    return np.mean(judged[1:] or judged, axis=0)


@pytest.mark.parametrize("hidden", [(24,), (24, 20), (24, 20, 17)])
def test_goodness_equals_the_oracle(open_predict, hidden):
    learner = learned(open_train_engine(ModelSpec("mlp", (6,), 4, hidden), seed=1))
    weights = learner.export(classes=CLASSES, version=1, parent=None, last_seq=0)
    x = samples(40)[0]
    with open_predict(weights) as engine:
        found = engine.predict(x).goodness
    # Where float32 and float64 fall on two sides of a rounding, one code of 127 differs.
    assert reference.relative_error(found, oracle_goodness(weights, x)) < 1e-2


def test_prediction_changes_neither_its_input_nor_the_weights(open_predict):
    weights, (x, _) = exported(), samples(9)
    kept_x, kept = x.copy(), bits(weights.arrays)
    with open_predict(weights) as engine:
        first = engine.predict(x)
        second = engine.predict(x)
    np.testing.assert_array_equal(x, kept_x)
    assert bits(weights.arrays) == kept
    np.testing.assert_array_equal(first.goodness, second.goodness)
    assert first.goodness.dtype == np.float32
    assert first.class_index.dtype == np.int64


@pytest.mark.parametrize("rows", [0, 1, 2, 16, 17, 130])
def test_an_answer_does_not_depend_on_the_rest_of_its_batch(open_predict, rows):
    x = samples(130)[0]
    x[100] = 1e6  # an outlier would stretch a scale taken from the batch
    with open_predict(exported()) as engine:
        whole, part = engine.predict(x), engine.predict(x[:rows])
        assert part.goodness.tobytes() == whole.goodness[:rows].tobytes()
        np.testing.assert_array_equal(part.class_index, whole.class_index[:rows])


def test_no_class_in_use_gives_minus_one(open_predict):
    with open_predict(exported(classes=())) as engine:
        answer = engine.predict(samples(5)[0])
    assert answer.class_index.tolist() == [-1] * 5
    assert answer.goodness.shape == (5, SPEC.max_classes)


@pytest.mark.parametrize("used", [1, 2, 3])
def test_classes_in_use_restrict_the_answer(open_predict, used):
    x = samples(60)[0]
    with open_predict(exported()) as engine, open_predict(exported(CLASSES[:used])) as fewer:
        everything, restricted = engine.predict(x), fewer.predict(x)
    assert (everything.class_index >= used).any()
    np.testing.assert_array_equal(restricted.goodness, everything.goodness)
    in_use = restricted.goodness[:, :used]
    np.testing.assert_array_equal(restricted.class_index, in_use.argmax(axis=1))


def test_the_wrong_input_shape_is_named(open_predict):
    with (
        open_predict(exported()) as engine,
        pytest.raises(ValueError, match=r"shape \[7\] per sample, the model needs \[6\]"),
    ):
        engine.predict(np.zeros((2, 7), np.float32))


def test_closing_twice_is_harmless(open_predict):
    engine = open_predict(exported())
    engine.close()
    engine.close()


def test_an_int8_network_learns(open_predict):
    learner = open_train_engine(SPEC, seed=1)
    learner.standardize_from(samples(200)[0])
    for step in range(150):
        learner.train_step(*samples(32, seed=step), **STEP)
    weights = learner.export(classes=CLASSES, version=1, parent=None, last_seq=0)
    x, labels = samples(500, seed=10_000)
    with open_predict(weights) as engine, open_predict(exported(steps=0)) as untrained:
        right, before = ((e.predict(x).class_index == labels).mean() for e in (engine, untrained))
    # The clouds overlap by less than 1 %; chance is 25 %.
    assert right >= 0.95
    assert before < 0.5
