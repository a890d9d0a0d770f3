"""A dense unit in INT8: codes and integers as foretold, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.dense import DenseTrainUnit
from engines.feature import Feature
from engines.fusion import Fusion
from engines.int8 import QTensor
from engines.precision import PRECISIONS, Accumulated
from engines.unit import Gradients, Step
from models.spec import CONTRACTION_MAX
from tests import reference

INT8, EAGER = PRECISIONS["int8"], Fusion("eager", "a test")
SEED, NUMBER, INDEX = 11, 5, 2
STEP = Step(SEED, NUMBER, learning_rate=0.25)
# Tensors of noise are numbered by unit, then layer (8 places), then tensor (3).
ERROR_TENSOR = INDEX * 8 * 3
# An int32 to float32, two scales multiplied, their product applied: torch's float32 default.
EPILOGUE = {"rtol": 1.3e-6, "atol": 0}


class Recorder:
    """Masters that stay as they are and remember what they were to be moved by."""

    def __init__(self, weight: QTensor) -> None:
        self.weight = weight
        self.steps: list = []

    def step(self, gradient, key, learning_rate) -> None:
        self.steps.append((gradient, key, learning_rate))

    def state(self):
        return {"codes": self.weight.codes}


class Layer:
    """A unit that has run forward; magnitudes differ channel by channel."""

    def __init__(self, batch: int, inputs: int, outputs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        spread = 10.0 ** rng.uniform(-3, 3, size=outputs)
        self.a = np.maximum(rng.normal(size=(batch, inputs)), 0).astype(np.float32)
        self.w = (rng.normal(size=(outputs, inputs)) * spread[:, None]).astype(np.float32)
        self.b = rng.normal(size=outputs).astype(np.float32)
        self.e = (rng.normal(size=(batch, outputs)) / spread).astype(np.float32)
        self.s_a, self.s_w = reference.absmax_scale(self.a), reference.absmax_scale(self.w, 1)
        self.q_a = reference.quantize(self.a, self.s_a)
        self.q_w = reference.quantize(self.w, self.s_w)
        codes = torch.from_numpy(self.q_w.astype(np.int8))
        self.masters = Recorder(QTensor(codes, torch.from_numpy(self.s_w)))
        self.gradients = Gradients()
        self.unit = DenseTrainUnit(
            INDEX, self.masters, torch.from_numpy(self.b), self.gradients, "b", INT8, EAGER
        )
        codes = torch.from_numpy(self.q_a.astype(np.int8))
        self.input = Feature(codes, torch.from_numpy(self.s_a)[()])
        self.output = self.unit.forward(self.input)
        # What the ReLU lets through is what the kept codes say.
        self.masked = np.where(self.output.codes.numpy() > 0, self.e, np.float32(0))
        self.draws = reference.draws(self.e.shape, SEED, NUMBER, ERROR_TENSOR)

    def backward(self, step: Step = STEP, **what: bool):
        self.unit.forward(self.input)  # an update lets go of what was kept
        terms = self.unit.backward(torch.from_numpy(self.e.copy()), step, **what)
        return None if terms is None else terms[0]


layers = st.builds(
    Layer,
    batch=st.integers(1, 24),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 24),
    seed=st.integers(0, 2**32 - 1),
)


@given(layers)
def test_the_next_unit_gets_the_direction_of_the_activity(layer):
    product = reference.int_matmul(layer.q_a, layer.q_w.T)
    scale = layer.s_a.astype(np.float64) * layer.s_w.T
    y = np.maximum(product * scale + layer.b, 0)
    z, n = reference.length_normalize(y)
    largest = z.max() / 127 if z.any() else 1.0
    np.testing.assert_allclose(layer.output.scale, largest, rtol=1e-5)
    assert layer.output.activation == "none"
    # To the nearest, float32 aside.
    assert (np.abs(layer.output.codes.numpy() - z / largest) <= 0.5 + 1e-3).all()
    activity = layer.unit.kept.activity(INT8).numpy()
    assert (np.abs(activity - y) <= n * largest * (0.5 + 1e-3) + 1e-6 * y).all()


@given(layers)
def test_weight_gradient_equals_the_integers_foretold(layer):
    assert layer.backward(update=True, propagate=False) is None
    ((gradient, key, rate),) = layer.masters.steps
    s_e = reference.absmax_scale(layer.masked, 0)  # one per output: the sum is over the batch
    q_e = reference.quantize(layer.masked, s_e, layer.draws[0])
    wanted = reference.int_matmul(q_e.T, layer.q_a)
    np.testing.assert_array_equal(gradient.values.numpy(), wanted)
    np.testing.assert_allclose(
        gradient.dequantize(), wanted * (s_e.T.astype(np.float64) * layer.s_a), **EPILOGUE
    )
    assert gradient.values.dtype == torch.int32
    assert (key.seed, key.step, key.tensor, rate) == (SEED, NUMBER, ERROR_TENSOR + 1, 0.25)
    np.testing.assert_allclose(layer.gradients["b"], layer.masked.sum(axis=0), rtol=1e-4, atol=1e-6)


@given(layers)
def test_input_gradient_equals_the_integers_foretold(layer):
    passed = layer.backward(update=False, propagate=True)
    folded = layer.masked * layer.s_w.T  # float32, as the codes depend on it
    s_e = reference.absmax_scale(folded, 1)  # one per row: the sum is over outputs
    q_e = reference.quantize(folded, s_e, layer.draws[1])
    wanted = reference.int_matmul(q_e, layer.q_w)
    np.testing.assert_array_equal(passed.values.numpy(), wanted)
    np.testing.assert_allclose(passed.dequantize(), wanted * s_e.astype(np.float64), **EPILOGUE)
    assert not layer.masters.steps
    assert not layer.gradients


@given(layers)
def test_both_at_once_are_either_alone(layer):
    both = layer.backward(update=True, propagate=True)
    layer.backward(update=True, propagate=False)
    alone = layer.backward(update=False, propagate=True)
    assert torch.equal(both.dequantize(), alone.dequantize())
    (one, *_), (other, *_) = layer.masters.steps
    assert torch.equal(one.dequantize(), other.dequantize())


@given(layers)
def test_folding_the_weight_scales_costs_only_the_rounding_of_the_error(layer):
    wanted = layer.masked.astype(np.float64) @ (layer.q_w * layer.s_w.astype(np.float64))
    found = layer.backward(update=False, propagate=True).dequantize().numpy()
    # Each folded error is off by less than a step of its row, 2^-16 of it float32 slack; the code
    # it meets multiplies that. A product of zero codes has no error at all.
    step = reference.absmax_scale(layer.masked * layer.s_w.T, 1).astype(np.float64)
    bound = step * np.abs(layer.q_w).sum(axis=0) * (1 + 2**-16)
    assert (np.abs(found - wanted) <= bound + 1.3e-6 * np.abs(wanted)).all()


@given(layers)
def test_weight_gradient_is_off_only_by_the_rounding_of_the_error(layer):
    inputs = layer.q_a * layer.s_a.astype(np.float64)
    layer.backward(update=True, propagate=False)
    found = layer.masters.steps[0][0].dequantize().numpy()
    wanted = layer.masked.T.astype(np.float64) @ inputs
    step = reference.absmax_scale(layer.masked, 0).T.astype(np.float64)
    bound = step * np.abs(inputs).sum(axis=0) * (1 + 2**-16)
    assert (np.abs(found - wanted) <= bound + 1.3e-6 * np.abs(wanted)).all()


def test_rounding_noise_of_gradients_averages_out():
    layer, steps = Layer(32, 16, 8, seed=2), 100
    passed = [
        layer.backward(Step(0, k, 0.1), update=True, propagate=True).dequantize().numpy()
        for k in range(steps)
    ]
    gradients = [gradient.dequantize().numpy() for gradient, *_ in layer.masters.steps]
    error = layer.masked.astype(np.float64)
    for samples, wanted in (
        (passed, error @ (layer.q_w * layer.s_w)),
        (gradients, error.T @ (layer.q_a * layer.s_a)),
    ):
        one = np.sqrt(np.mean([reference.relative_error(s, wanted) ** 2 for s in samples]))
        mean = reference.relative_error(np.mean(samples, axis=0), wanted)
        # Independent and unbiased: 1/sqrt(100) = 1/10 of a single error; twice that is allowed.
        assert mean < one / 5


@given(layers)
def test_a_gradient_at_the_direction_becomes_one_at_the_activity(layer):
    u = np.random.default_rng(0).normal(size=layer.e.shape)
    codes = np.round(u * 1000).astype(np.int32)
    later = Accumulated(torch.from_numpy(codes), torch.tensor(1e-3))
    found = layer.unit.kept.error_at_activity((later,)).numpy()
    z = layer.output.codes.numpy() * layer.output.scale.numpy().astype(np.float64)
    length = layer.unit.kept.length.numpy().astype(np.float64)
    for row, error in enumerate(codes * 1e-3):
        wanted = (error - z[row] * (error * z[row]).mean()) / length[row]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5 / length[row].item())


def test_a_unit_that_has_been_updated_says_that_forward_comes_first():
    layer = Layer(3, 4, 5, 0)
    layer.backward(update=True, propagate=False)
    with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
        _ = layer.unit.kept
    with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
        layer.unit.backward(torch.from_numpy(layer.e), STEP, update=True, propagate=False)


def test_a_batch_whose_sums_could_overflow_is_refused_before_anything_is_learned():
    layer = Layer(2, 8, 4, seed=0)
    rows = torch.zeros(CONTRACTION_MAX + 1, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match=f"over {CONTRACTION_MAX + 1} codes.*split the batch"):
        layer.unit.forward(Feature(rows, torch.ones(())))
