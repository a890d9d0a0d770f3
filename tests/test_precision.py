"""The three products of a layer in INT8: against the integers they claim, then against FP32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import engines.precision
from engines import open_train_engine
from engines.int8 import QTensor, int8_matmul
from engines.optim import AdamMasters
from engines.precision import Fp32, Int8
from engines.rounding import NoiseKey
from models import ModelSpec
from tests import reference

KEY = NoiseKey(seed=11, step=5, tensor=2)
KEY_NUMBERS = (11, 5, 2)

# An int32 to float32, two scales multiplied, their product applied: four roundings of 2^-24 are
# 2.4e-7; torch's own float32 default leaves room for them.
EPILOGUE_RTOL = 1.3e-6


class Layer:
    """Input, weights and error of one dense layer, magnitudes differing channel by channel."""

    def __init__(self, batch: int, inputs: int, outputs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        spread = 10.0 ** rng.uniform(-3, 3, size=outputs)
        self.a = np.maximum(rng.normal(size=(batch, inputs)), 0).astype(np.float32)
        self.w = (rng.normal(size=(outputs, inputs)) * spread[:, None]).astype(np.float32)
        self.e = (rng.normal(size=(batch, outputs)) / spread).astype(np.float32)
        self.e[rng.random(self.e.shape) < 0.5] = 0  # silent ReLUs
        self.s_a, self.s_w = reference.absmax_scale(self.a), reference.absmax_scale(self.w, 1)
        self.q_a = reference.quantize(self.a, self.s_a)
        self.q_w = reference.quantize(self.w, self.s_w)
        precision = Int8()
        self.qa = precision.activation(torch.from_numpy(self.a))
        self.qw = precision.weight(torch.from_numpy(self.w))
        self.error = torch.from_numpy(self.e)


layers = st.builds(
    Layer,
    batch=st.integers(1, 24),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 24),
    seed=st.integers(0, 2**32 - 1),
)


def check_product(compute, codes_left, codes_right, scale) -> None:
    """`compute()` multiplies exactly these codes, to exactly these integers, times `scale`."""
    seen = []

    def spy(a, b, scratch=None):
        seen.append((a.numpy().copy(), b.numpy().copy(), int8_matmul(a, b, scratch)))
        return seen[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.precision, "int8_matmul", spy)
        found = compute().numpy()
    ((a, b, accumulator),) = seen
    wanted = reference.int_matmul(codes_left, codes_right)
    np.testing.assert_array_equal(a, codes_left)
    np.testing.assert_array_equal(b, codes_right)
    np.testing.assert_array_equal(accumulator.numpy(), wanted)
    np.testing.assert_allclose(found, wanted * scale, rtol=EPILOGUE_RTOL, atol=0)


def test_a_weight_sized_result_is_memory_used_again_and_a_batch_sized_one_is_not():
    """Prediction, which several threads may run, must share no memory between calls."""
    layer, int8 = Layer(32, 16, 8, seed=1), Int8()
    assert int8.grad_weight(layer.error, layer.qa, KEY).data_ptr() == (
        int8.grad_weight(layer.error, layer.qa, KEY).data_ptr()
    )
    first, second = int8.linear(layer.qa, layer.qw), int8.linear(layer.qa, layer.qw)
    assert first.data_ptr() != second.data_ptr()


# --- against integers -------------------------------------------------------------------------


@given(layers)
def test_activation_has_one_scale_and_weight_one_per_output(layer):
    np.testing.assert_array_equal(layer.qa.codes.numpy(), layer.q_a)
    np.testing.assert_array_equal(layer.qw.codes.numpy(), layer.q_w)
    np.testing.assert_array_equal(layer.qa.scale.numpy(), layer.s_a)
    np.testing.assert_array_equal(layer.qw.scale.numpy(), layer.s_w)
    assert layer.qa.scale.shape == ()
    assert layer.qw.scale.shape == (len(layer.w), 1)


@given(layers)
def test_forward_equals_the_oracle(layer):
    scale = layer.s_a.astype(np.float64) * layer.s_w.T
    check_product(lambda: Int8().linear(layer.qa, layer.qw), layer.q_a, layer.q_w.T, scale)


@given(layers)
def test_weight_gradient_equals_the_oracle(layer):
    s_e = reference.absmax_scale(layer.e, 0)  # one per output channel: the sum is over the batch
    q_e = reference.quantize(layer.e, s_e, reference.uniform(layer.e.shape, *KEY_NUMBERS))
    scale = s_e.T.astype(np.float64) * layer.s_a
    check_product(lambda: Int8().grad_weight(layer.error, layer.qa, KEY), q_e.T, layer.q_a, scale)


@given(layers)
def test_input_gradient_equals_the_oracle(layer):
    folded = layer.e * layer.s_w.T  # float32, as the codes depend on it
    s_e = reference.absmax_scale(folded, 1)  # one per row: the sum is over output channels
    q_e = reference.quantize(folded, s_e, reference.uniform(layer.e.shape, *KEY_NUMBERS))
    check_product(lambda: Int8().grad_input(layer.error, layer.qw, KEY), q_e, layer.q_w, s_e)


def test_a_given_activation_scale_is_used_as_it_is():
    q = Int8().activation(torch.tensor([[0.5, -3.0, 300.0]]), torch.tensor(0.5))
    assert q.codes.tolist() == [[1, -6, 127]]
    assert q.scale.item() == 0.5


# --- against the dequantized computation ------------------------------------------------------


@given(layers)
def test_folding_the_weight_scales_costs_only_the_rounding_of_the_error(layer):
    weights = layer.q_w * layer.s_w.astype(np.float64)
    wanted = layer.e.astype(np.float64) @ weights  # [B, out] @ [out, in]
    found = Int8().grad_input(layer.error, layer.qw, KEY).numpy()
    # Each folded error is off by less than a step of its row, 2^-17 of it float32 slack; the code
    # it meets multiplies that. A product of zero codes has no error at all.
    step = reference.absmax_scale(layer.e * layer.s_w.T, 1).astype(np.float64)
    bound = step * np.abs(layer.q_w).sum(axis=0) * (1 + 2**-17)
    assert (np.abs(found - wanted) <= bound + EPILOGUE_RTOL * np.abs(wanted)).all()


@given(layers)
def test_weight_gradient_is_off_only_by_the_rounding_of_the_error(layer):
    inputs = layer.q_a * layer.s_a.astype(np.float64)
    wanted = layer.e.T.astype(np.float64) @ inputs  # [out, B] @ [B, in]
    found = Int8().grad_weight(layer.error, layer.qa, KEY).numpy()
    step = reference.absmax_scale(layer.e, 0).T.astype(np.float64)
    bound = step * np.abs(inputs).sum(axis=0) * (1 + 2**-17)
    assert (np.abs(found - wanted) <= bound + EPILOGUE_RTOL * np.abs(wanted)).all()


def test_rounding_noise_of_gradients_averages_out():
    layer, keys = Layer(32, 16, 8, seed=1), 100
    for name, other, dequantized in (
        ("grad_weight", layer.qa, layer.e.T.astype(np.float64) @ (layer.q_a * layer.s_a)),
        ("grad_input", layer.qw, layer.e.astype(np.float64) @ (layer.q_w * layer.s_w)),
    ):
        product = getattr(Int8(), name)
        samples = [
            product(layer.error, other, NoiseKey(0, k, 0)).numpy().copy() for k in range(keys)
        ]
        one = reference.relative_error(samples[0], dequantized)
        mean = reference.relative_error(np.mean(samples, axis=0), dequantized)
        # Independent and unbiased: 1/sqrt(100) = 1/10 of a single error; twice that is allowed.
        assert mean < one / 5


def test_no_two_roundings_of_a_run_share_their_noise(monkeypatch):
    keys, uniform = [], engines.precision.uniform

    def spy(shape, key):
        keys.append(key)
        return uniform(shape, key)

    monkeypatch.setattr(engines.precision, "uniform", spy)
    for seed in (1, 2):
        engine = open_train_engine(ModelSpec("mlp", (4,), 2, (5, 4, 3)), seed=seed)
        for _ in range(3):
            step = {"learning_rate": 1e-3, "look_ahead_weight": 0.5}
            engine.train_step(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), **step)
    # Two runs of three steps; in each, three weight gradients and two input gradients.
    assert len({key.word() for key in keys}) == len(keys) == 2 * 3 * 5


# --- against FP32 -----------------------------------------------------------------------------


def test_fp32_computes_the_plain_products():
    rng, fp32 = np.random.default_rng(0), Fp32()
    a, w, e = (torch.from_numpy(rng.normal(size=s)) for s in ((5, 7), (3, 7), (5, 3)))
    qa, qw = fp32.activation(a, torch.tensor(0.5)), fp32.weight(w)
    assert torch.equal(qa.dequantize(), a)
    torch.testing.assert_close(fp32.linear(qa, qw), a @ w.t())
    torch.testing.assert_close(fp32.grad_weight(e, qa, KEY), e.t() @ a)
    torch.testing.assert_close(fp32.grad_input(e, qw, KEY), e @ w)


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, standardised by their own mean and one deviation."""
    images, labels = load_digits(return_X_y=True)
    return ((images - images.mean()) / images.std()).astype(np.float32), labels.astype(np.int64)


@pytest.fixture(scope="module")
def twins(digits):
    """What the next step computes in INT8 and in FP32, from the same half-trained weights."""
    images, labels = digits
    spec = ModelSpec("mlp", (64,), 10, (100, 90, 80))
    learner = open_train_engine(spec, seed=3)
    for start in range(0, 1280, 64):
        batch = slice(start, start + 64)
        learner.train_step(images[batch], labels[batch], learning_rate=2e-3, look_ahead_weight=0.5)
    seen: dict[str, dict[str, list]] = {}
    for kind in (Int8, Fp32):
        forward, gradients = [], []
        linear = kind.linear

        def record(self, a: QTensor, w: QTensor, linear=linear, forward=forward):
            forward.append(linear(self, a, w).clone())
            return forward[-1].clone()

        def keep(_, found, __, gradients=gradients):
            gradients.append({name: tensor.clone() for name, tensor in found.items()})

        twin = open_train_engine(spec, seed=3, precision=kind.name)
        twin.load_state(learner.state())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "linear", record)
            patch.setattr(AdamMasters, "step", keep)
            step = {"learning_rate": 1e-3, "look_ahead_weight": 0.5}
            twin.train_step(images[1300:1428], labels[1300:1428], **step)
        seen[kind.name] = {"forward": forward, "gradients": gradients}
    return seen


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_forward_stays_within_20_db_of_fp32(twins, unit):
    # 20 dB, a tenth of the signal, is what INT8 products are commonly held to; 127 steps a tensor
    # give some 40 dB for one layer, less for those that inherit errors.
    found, wanted = (twins[p]["forward"][unit] for p in ("int8", "fp32"))
    assert reference.snr_db(found, wanted) >= 20


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_weight_gradient_points_where_that_of_fp32_points(twins, unit):
    found, wanted = (twins[p]["gradients"][2 - unit]["weight"] for p in ("int8", "fp32"))
    # 0.99: an angle of 8 degrees, error and input quantized and the sweep through two units behind.
    assert reference.cosine(found, wanted) >= 0.99
