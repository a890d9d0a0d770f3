"""A convolution with batch norm: statistics, codes, gradients and the folded layer that serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.conv_norm import ConvNormTrainLayer
from engines.conv_products import ConvProducts, conv_products
from engines.feature import Feature
from engines.fusion import Fusion
from engines.im2col import ConvScratch
from engines.masters import open_masters
from engines.precision import PRECISIONS, Accumulated
from engines.recipe import Optimizer
from engines.unit import Gradients, Step
from models.blocks import ACTIVATIONS, ConvNormAct
from models.layers import ConvLayer
from tests import reference
from tests.networks import as_kernel, as_matrix

INT8, FP32 = PRECISIONS["int8"], PRECISIONS["fp32"]
EAGER, STEP, HUGE_RATE = Fusion("eager", "a test"), Step(3, 7, 2.0**40), 2.0**40
BATCH = 6
LAYERS = {
    "dense": ConvLayer(5, 7, 3, 1, False, "relu", (6, 5)),
    "strided": ConvLayer(4, 8, 3, 2, False, "none", (7, 8)),
    "pointwise": ConvLayer(8, 6, 1, 1, False, "relu6", (4, 4)),
    "depthwise": ConvLayer(9, 9, 5, 2, True, "silu", (9, 7)),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


class Recorder(ConvProducts):
    """Products that remember the error codes they were given."""

    def __init__(self, products: ConvProducts) -> None:
        self._products = products
        self.errors: dict[str, torch.Tensor] = {}

    def forward(self, a, w):
        return self._products.forward(a, w)

    def grad_weight(self, e, a):
        self.errors["weight"] = e.clone()
        return self._products.grad_weight(e, a)

    def grad_input(self, e, w):
        self.errors["input"] = e.clone()
        return self._products.grad_input(e, w)


class Pair:
    """A layer of the engine, and torch's convolution and BatchNorm2d with the same numbers."""

    def __init__(self, layer: ConvLayer, precision, *, gamma=None, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.layer, self.precision, self.rng = layer, precision, rng
        self.module = ConvNormAct(layer, torch.Generator().manual_seed(seed))
        out = layer.out_channels
        if gamma is None:
            gamma = rng.uniform(0.5, 1.5, out) * np.resize([1, -1, -1], out)
        self.gamma = torch.tensor(gamma, dtype=torch.float32)
        self.beta = torch.from_numpy(rng.normal(scale=0.5, size=out).astype(np.float32))
        with torch.no_grad():
            self.module.bn.weight.copy_(self.gamma)
            self.module.bn.bias.copy_(self.beta)
        self.gradients = Gradients()
        weight = self.module.weight_matrix()
        self.products = Recorder(conv_products(layer, precision, EAGER, ConvScratch()))
        self.engine = ConvNormTrainLayer(
            layer, (0, 0), open_masters("float32", weight, precision, Optimizer("sgd"), EAGER),
            self.gamma, self.beta, self.gradients, "l", self.products, precision, EAGER,
        )  # fmt: skip
        if precision is INT8:
            # What the codes stand for: then only activations and errors differ.
            held = self.engine._masters.weight.dequantize()
            with torch.no_grad():
                self.module.conv.weight.copy_(as_kernel(held, self.module.conv.weight))
        self.module.double()

    def input(self) -> tuple[Feature, torch.Tensor]:
        """Codes for the engine, NHWC, and what they stand for, NCHW float64."""
        shape = (BATCH, *self.layer.input_shape)
        x = torch.from_numpy(self.rng.normal(size=shape).astype(np.float32))
        scale = self.precision.scale(x.abs().amax())
        feature = Feature(self.precision.quantize(x, scale), scale)
        return feature, feature.dequantize(self.precision).permute(0, 3, 1, 2).double()

    def error(self) -> torch.Tensor:
        shape = (BATCH, *self.layer.output_shape)
        return torch.from_numpy(self.rng.normal(size=shape).astype(np.float32))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.detach().permute(0, 2, 3, 1)


# --- forward ------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("precision", [INT8, FP32], ids=lambda p: p.name)
def test_forward_is_torchs_convolution_norm_and_activation(layer, precision):
    pair = Pair(layer, precision)
    a, x = pair.input()
    output = pair.engine.forward(a)
    wanted = channels_last(pair.module(x))
    pre = channels_last(pair.module.bn(pair.module.conv(x)))
    assert output.activation == layer.activation
    if precision is FP32:
        np.testing.assert_allclose(output.codes, pre, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output.dequantize(FP32), wanted, rtol=1e-4, atol=1e-5)
        return
    assert output.codes.dtype == torch.int8
    # Its scale was known before any z was: it is exactly that of the largest z.
    np.testing.assert_allclose(output.scale, pre.abs().max() / 127, rtol=1e-4)
    assert output.codes.abs().max() == 127
    # To the nearest code, float32 aside; then the activation's own rounding.
    assert ((output.codes * output.scale - pre).abs() <= output.scale * 0.51).all()
    assert ((output.dequantize(INT8) - wanted).abs() <= output.scale * 1.2).all()


@every_layer
@pytest.mark.parametrize("precision", [INT8, FP32], ids=lambda p: p.name)
def test_running_statistics_are_those_of_batch_norm(layer, precision):
    pair = Pair(layer, precision)
    pair.module.train()
    for _ in range(3):
        a, x = pair.input()
        pair.engine.forward(a)
        pair.module(x)
    state = pair.engine.state()
    bn = pair.module.bn
    np.testing.assert_allclose(state["mean"], bn.running_mean, rtol=1e-4, atol=1e-6)
    # Unbiased in the running variance, as torch has it, and biased in the norm.
    np.testing.assert_allclose(state["var"], bn.running_var, rtol=1e-4)


def test_one_value_a_channel_has_no_variance_and_stays_finite():
    layer = ConvLayer(3, 4, 3, 1, False, "relu", (1, 1))
    pair = Pair(layer, INT8)
    codes = torch.full((1, 1, 1, 3), 50, dtype=torch.int8)
    output = pair.engine.forward(Feature(codes, torch.tensor(0.1)))
    # u is its own mean: z = beta.
    np.testing.assert_allclose(output.codes * output.scale, pair.beta.view(1, 1, 1, -1), atol=0.02)
    assert all(tensor.isfinite().all() for tensor in pair.engine.state().values())


def test_a_constant_channel_gives_beta():
    pair = Pair(LAYERS["pointwise"], INT8)
    shape = (BATCH, *pair.layer.input_shape)
    codes = torch.full(shape, 100, dtype=torch.int8)
    output = pair.engine.forward(Feature(codes, torch.tensor(0.1)))
    # Sums as large as 10^5 that do not vary at all: what E[c^2] - E[c]^2 leaves of them in float32
    # must not be taken for a variance.
    found = (output.codes * output.scale)[..., :]
    np.testing.assert_allclose(found, pair.beta.expand_as(found), atol=0.6 * output.scale.item())


def test_the_serving_scale_follows_the_batches_and_the_first_counts_whole():
    pair, wanted = Pair(LAYERS["dense"], INT8), None
    for _ in range(3):
        a, _ = pair.input()
        scale = pair.engine.forward(a).scale.item()
        wanted = scale if wanted is None else wanted + 0.05 * (scale - wanted)
        assert pair.engine.state()["output_scale"].item() == pytest.approx(wanted, rel=1e-6)


@every_layer
def test_no_samples_have_no_sums(layer):
    pair = Pair(layer, INT8)
    nothing = Feature(torch.zeros((0, *layer.input_shape), dtype=torch.int8), torch.ones(()))
    sums = pair.products.forward(nothing, pair.engine._masters.weight.codes)
    assert sums.shape == (0, *layer.output_shape)


# --- backward -----------------------------------------------------------------------------------


def gradients(pair: Pair, a: Feature, x: torch.Tensor, error: torch.Tensor):
    """Of both: at the input and at weight, gamma and beta."""
    before = pair.engine.state()["weight.weight"].clone()
    later = Accumulated(error, torch.ones(()))
    passed = pair.engine.backward(later, STEP, update=True, propagate=True).dequantize()
    found = {
        "input": passed,
        "weight": (before - pair.engine.state()["weight.weight"]) / HUGE_RATE,
        "gamma": pair.gradients["l.gamma"],
        "beta": pair.gradients["l.beta"],
    }
    x = x.requires_grad_()
    module = pair.module
    leaves = [x, module.conv.weight, module.bn.weight, module.bn.bias]
    grads = torch.autograd.grad(module(x), leaves, error.double().permute(0, 3, 1, 2))
    wanted = dict(zip(found, grads, strict=True))
    wanted["input"] = channels_last(wanted["input"])
    wanted["weight"] = as_matrix(wanted["weight"])
    return {name: (found[name], wanted[name]) for name in found}


@every_layer
def test_gradients_of_the_float_twin_equal_autograd(layer):
    pair = Pair(layer, FP32)
    a, x = pair.input()
    pair.engine.forward(a)
    for name, (found, wanted) in gradients(pair, a, x, pair.error()).items():
        assert reference.relative_error(found, wanted) < 1e-4, name


def slopes(z: torch.Tensor, activation: str) -> torch.Tensor:
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ACTIVATIONS[activation](leaf).sum(), leaf)
    return slope


def du_by_the_formulas(pair: Pair, x, error, output: Feature):
    """float64, from the kept codes as the module has them: du NHWC, dgamma, dbeta."""
    z = (output.codes.double() * output.scale).detach()
    gamma, beta = pair.gamma.double(), pair.beta.double()
    u = pair.module.conv(x).detach()
    inverse = (u.var(dim=(0, 2, 3), unbiased=False) + 1e-5).rsqrt()
    dz = error.double() * slopes(z, pair.layer.activation)
    x_hat = (z - beta) / gamma
    count = dz.numel() // len(gamma)
    dbeta, dgamma = dz.sum(dim=(0, 1, 2)), (dz * x_hat).sum(dim=(0, 1, 2))
    return gamma * inverse * (dz - dbeta / count - x_hat * dgamma / count), dgamma, dbeta


def gradients_by_the_formulas(pair: Pair, x, error, output: Feature):
    du, dgamma, dbeta = du_by_the_formulas(pair, x, error, output)
    x = x.requires_grad_()
    weight = pair.module.conv.weight
    grads = torch.autograd.grad(pair.module.conv(x), [x, weight], du.permute(0, 3, 1, 2))
    return channels_last(grads[0]), as_matrix(grads[1]), dgamma, dbeta


@every_layer
def test_errors_are_rounded_once_for_each_product_with_the_scale_and_the_draw_foretold(layer):
    pair = Pair(layer, INT8)
    a, x = pair.input()
    output, error = pair.engine.forward(a), pair.error()
    error *= torch.logspace(0, -3, BATCH)[:, None, None, None]  # samples of different size
    du, _, _ = du_by_the_formulas(pair, x, error, output)
    weight_scale = pair.engine._masters.weight.scale[:, 0]
    pair.engine.backward(Accumulated(error, torch.ones(())), STEP, update=True, propagate=True)
    rows = int(np.prod(du.shape[:-1]))
    low, high = reference.draws((rows, layer.out_channels), STEP.seed, STEP.number, 0)
    folded = du * weight_scale
    for name, value, axes, draw in (
        ("weight", du, (0, 1, 2), low),  # one scale a channel, the low half of each word
        ("input", folded, (1, 2, 3), high),  # one a sample, the high half
    ):
        scale = value.abs().amax(dim=axes, keepdim=True) / 127
        steps = value / scale + torch.from_numpy(draw * 2.0**-16).view(value.shape)
        codes = pair.products.errors[name]
        assert codes.dtype == torch.int8
        # Float32 sums of a few hundred errors leave a hundredth of a step uncertain.
        assert (codes >= (steps - 0.01).floor().clamp(-127, 127)).all(), name
        assert (codes <= (steps + 0.01).floor().clamp(-127, 127)).all(), name


@every_layer
def test_gradients_of_int8_are_the_formulas_on_the_kept_codes(layer):
    pair = Pair(layer, INT8)
    a, x = pair.input()
    output, error = pair.engine.forward(a), pair.error()
    wanted = gradients_by_the_formulas(pair, x, error, output)
    for (name, (found, by_autograd)), value in zip(
        gradients(pair, a, x, error).items(), wanted, strict=True
    ):
        if name in ("gamma", "beta"):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)
        else:
            # One stochastic rounding to 127 steps of a maximum some three deviations large: 40 dB.
            assert reference.snr_db(found, value) >= 30, name
        # Against autograd z's rounding counts too: half a percent of all ReLUs change sides, 23 dB
        # of a large tensor and less of these few hundred values.
        assert reference.snr_db(found, by_autograd) >= 13, name


@every_layer
def test_what_is_not_asked_for_is_not_done(layer):
    pair = Pair(layer, INT8)
    a, _ = pair.input()
    pair.engine.forward(a)
    later = Accumulated(pair.error(), torch.ones(()))
    state = {name: tensor.clone() for name, tensor in pair.engine.state().items()}
    passed = pair.engine.backward(later, STEP, update=False, propagate=True).dequantize().clone()
    assert not pair.gradients
    assert all(torch.equal(t, state[n]) for n, t in pair.engine.state().items())
    assert pair.engine.backward(later, STEP, update=True, propagate=False) is None
    assert pair.gradients.keys() == {"l.gamma", "l.beta"}
    assert not torch.equal(pair.engine.state()["weight.weight"], state["weight.weight"])
    # Both at once: the same input gradient, through the weights of before.
    again = Pair(layer, INT8)
    again.engine.forward(again.input()[0])
    both = again.engine.backward(
        Accumulated(again.error(), torch.ones(())), STEP, update=True, propagate=True
    )
    assert torch.equal(both.dequantize(), passed)


@every_layer
def test_errors_that_come_as_integers_are_worth_their_scale(layer):
    """Inside a unit an error arrives as an int32 accumulator with one scale per sample."""
    values = torch.randint(-90_000, 90_000, (BATCH, *layer.output_shape), dtype=torch.int32)
    scale = torch.rand(BATCH, 1, 1, 1) * 1e-4
    results = []
    for later in (
        Accumulated(values, scale),
        Accumulated(values * scale, torch.ones(())),
    ):
        pair = Pair(layer, INT8)
        pair.engine.forward(pair.input()[0])
        passed = pair.engine.backward(later, STEP, update=True, propagate=True)
        results.append([passed.dequantize(), *pair.gradients.values()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, 5e-4, -5e-4])
def test_a_channel_whose_gamma_is_almost_zero_learns_beta_and_stays_finite(tiny):
    layer = LAYERS["strided"]
    gamma = np.ones(layer.out_channels)
    gamma[2] = tiny
    for precision in (INT8, FP32):
        pair = Pair(layer, precision, gamma=gamma)
        a, x = pair.input()
        pair.engine.forward(a)
        found = gradients(pair, a, x, pair.error())
        for name, (ours, _) in found.items():
            assert ours.isfinite().all(), name
        # z says nothing of x_hat there: gamma gets no gradient, instead of noise a thousandfold.
        assert found["gamma"][0][2] == 0
        np.testing.assert_allclose(found["beta"][0], found["beta"][1], rtol=1e-4, atol=1e-4)
        kept = torch.arange(layer.out_channels) != 2
        ours, theirs = found["gamma"]
        assert reference.snr_db(ours[kept], theirs[kept]) >= 20
        # ... and its weights hardly any: their gradient is in proportion to gamma.
        size = found["weight"][0][2].abs().max()
        assert size <= 2e-3 * found["weight"][0].abs().max()


def test_a_negative_gamma_turns_codes_and_gradients_round():
    layer = LAYERS["strided"]
    gamma = np.linspace(0.5, 1.5, layer.out_channels)
    results = []
    for sign in (1, -1):
        pair = Pair(layer, FP32, gamma=gamma * sign)
        pair.beta.zero_()
        a, _ = pair.input()
        output, error = pair.engine.forward(a), pair.error()
        later = Accumulated(error * sign, torch.ones(()))
        passed = pair.engine.backward(later, STEP, update=True, propagate=True).dequantize()
        results.append((output.codes * sign, passed, pair.gradients["l.gamma"] * sign))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [INT8, FP32], ids=lambda p: p.name)
def test_a_layer_that_has_been_updated_says_that_forward_comes_first(precision):
    pair = Pair(LAYERS["dense"], precision)
    later = Accumulated(pair.error(), torch.ones(()))
    with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
        pair.engine.backward(later, STEP, update=True, propagate=True)
    pair.engine.forward(pair.input()[0])
    pair.engine.backward(later, STEP, update=True, propagate=True)
    with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
        pair.engine.backward(later, STEP, update=True, propagate=True)
