"""Back-propagation baselines: the frame against autograd, and each method as it trains."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv2d_input, conv2d_weight

from benchmarks.backprop import layers
from benchmarks.backprop.gradient import GradientCodes, GradientQuantizer, Rounding
from benchmarks.backprop.layers import Int8Layer, convert_to_int8
from benchmarks.backprop.masked_relu import masked_relus
from benchmarks.backprop.method import BACKPROP_NAMES, Backprop
from benchmarks.backprop.network import PooledLinear, build_network
from benchmarks.backprop.policies import Nearest
from benchmarks.live_bytes import peak_live_bytes
from benchmarks.samples import label_samples
from benchmarks.trial import Trial
from engines.fusion import Fusion
from engines.int8 import QTensor
from models import ModelSpec
from models.blocks import SqueezeExcite
from tests.test_int8_is_real import ProductRecorder, check_integer_products

EAGER = Rounding(0, Fusion("eager", "a test"))
INT8_NAMES = [name for name in BACKPROP_NAMES if not name.startswith("bp-fp32")]


# --- the frame: what remains without rounding is autograd ---------------------------------------


class Unrounded(GradientQuantizer):
    """A policy that does not quantize."""

    per_channel_weights = False

    def quantize(self, g, weight_scale, *, want_input, sums_channels):
        part = QTensor(g, torch.ones(()))
        return GradientCodes((part,), (part,) if want_input else ())


class FloatConv:
    """`ConvProduct` and `DepthwiseProduct` in floating point, from torch's own convolution."""

    sums_channels = True

    def __init__(self, layer, _memory_or_fusion):
        self.layer = layer

    def _kernel(self, w):
        k = self.layer.kernel
        return w.view(len(w), k, k, -1).permute(0, 3, 1, 2)

    def _options(self, w):
        groups = self.layer.in_channels if self.layer.depthwise else 1
        return {
            "stride": self.layer.stride, "padding": self.layer.padding, "groups": groups,
        }  # fmt: skip

    def forward(self, a, w):
        y = F.conv2d(a.permute(0, 3, 1, 2), self._kernel(w), **self._options(w))
        self.shape, self.options = self._kernel(w).shape, self._options(w)
        return y.permute(0, 2, 3, 1)

    def grad_weight(self, e, a):
        a, e = a.permute(0, 3, 1, 2), e.permute(0, 3, 1, 2)
        g = conv2d_weight(a, self.shape, e, **self.options)
        return g.permute(0, 2, 3, 1).flatten(1)

    def grad_input(self, e, w):
        shape = (len(e), self.layer.in_channels, *self.layer.in_size)
        g = conv2d_input(shape, self._kernel(w), e.permute(0, 3, 1, 2), **self.options)
        return g.permute(0, 2, 3, 1)

    def grouped(self, g):
        return g.flatten(1, 2)


class FloatLinear:
    sums_channels = True

    def forward(self, a, w):
        return a @ w.t()

    def grad_weight(self, e, a):
        return e.t() @ a

    def grad_input(self, e, w):
        return e @ w

    def grouped(self, g):
        return g[:, None]


MLP = ModelSpec("mlp", (3, 4, 4), 3, (20, 17))


def conv_spec(name: str) -> ModelSpec:
    return ModelSpec(name, (3, 8, 8), 3, width=0.25)


@pytest.mark.parametrize(
    "spec", [MLP, *map(conv_spec, ("resnet8", "mobilenet_v2", "efficientnet_b0"))],
    ids=lambda spec: spec.name,
)  # fmt: skip
def test_without_rounding_the_twins_are_autograd(spec, monkeypatch):
    for name, plain in (
        ("LinearProduct", FloatLinear), ("ConvProduct", FloatConv), ("DepthwiseProduct", FloatConv),
        ("quantize", QTensor),
        ("absmax_scale", lambda x, dim=None: torch.ones(())),
    ):  # fmt: skip
        monkeypatch.setattr(layers, name, plain)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(6, *spec.input_shape)))
    if spec.name == "mlp":
        x = x.flatten(1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    gradients = []
    for quantize in (False, True):
        network = build_network(spec, seed=1).double()
        kinds = [type(module) for module in network.modules()]
        twins = (
            convert_to_int8(network, lambda _: Unrounded(), EAGER, (SqueezeExcite,))
            if quantize
            else []
        )
        with masked_relus():
            F.cross_entropy(network(x), labels).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    layers_in_gates = 2 * kinds.count(SqueezeExcite)
    wanted = kinds.count(torch.nn.Linear) + kinds.count(torch.nn.Conv2d) - layers_in_gates
    assert len(twins) == wanted > 0
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-9, atol=1e-12, msg=name)
        assert wanted.any()


def test_masked_relu_has_the_gradients_of_torch():
    x = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 6.0, 7.0])
    for relu in (torch.relu, F.relu, F.relu6):
        wanted, found = (x.clone().requires_grad_() for _ in range(2))
        y = relu(wanted)
        y.backward(torch.arange(1.0, 7.0))
        with masked_relus():
            masked = relu(found)
        assert type(masked.grad_fn) is not type(y.grad_fn)
        masked.backward(torch.arange(1.0, 7.0))
        assert torch.equal(masked, y)
        assert torch.equal(found.grad, wanted.grad)


# --- methods ------------------------------------------------------------------------------------


def trial(method: str, **changes: object) -> Trial:
    fields = {
        "method": method, "model": "mlp", "data": "made up", "test": None, "seed": 0, "epochs": 1,
        "batch": 24, "hidden": (20, 17), "width": 1.0, "learning_rate": 1e-2,
        "schedule": "cosine", "weight_decay": 0.0, "augment": False, "look_ahead": (0.0, 0.0),
        "limit": None, "threads": None, "fusion": "eager",
    }  # fmt: skip
    return Trial(**(fields | changes))


LABELS = np.arange(24) % 3
IMAGES = np.random.default_rng(2).normal(size=(24, 3, 8, 8)).astype(np.float32)
SAMPLES = label_samples(IMAGES + LABELS[:, None, None, None].astype(np.float32), LABELS, "made up")


def method(name: str, **changes: object) -> Backprop:
    asked = trial(name, **changes)
    built = Backprop(asked, asked.spec(SAMPLES.x.shape[1:], 3), SAMPLES)
    built.start_step(0.0)
    return built


def take_steps(trained: Backprop, steps: int) -> list[float]:
    return [trained.step(SAMPLES.x, SAMPLES.labels) for _ in range(steps)]


@pytest.mark.parametrize("name", INT8_NAMES)
def test_int8_methods_multiply_only_integers(name):
    parts = 2 if name == "bp-gdai8-like" else 1
    trained = method(name)
    with ProductRecorder() as recorder:
        losses = take_steps(trained, 2)
    assert np.isfinite(losses).all()
    # 3 layers forward; gradients at 3 weights and 2 inputs.
    assert recorder.names == 2 * (3 + 5 * parts) * ["_int_mm"]
    check_integer_products(recorder)


@pytest.mark.parametrize("model", ["resnet8", "mobilenet_v2"])
@pytest.mark.parametrize("name", ["bp-int8", "bp-int8-strong", "bp-gdai8-like"])
def test_int8_convolutions_multiply_only_integers(name, model):
    trained = method(name, model=model, width=0.25)
    with ProductRecorder() as recorder:
        losses = take_steps(trained, 2 if model == "resnet8" else 1)
    assert np.isfinite(losses).all()
    assert {*recorder.names} == {"_int_mm"}


@pytest.mark.parametrize("name", BACKPROP_NAMES)
def test_methods_learn_a_convolution_and_repeat(name):
    runs = [take_steps(method(name, model="resnet8", width=0.25), 8) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0] / 2


def test_recomputing_changes_memory_and_nothing_else():
    trained = [
        method(name, model="resnet8", width=0.5) for name in ("bp-fp32", "bp-fp32-checkpoint")
    ]
    losses = [take_steps(one, 3) for one in trained]
    assert losses[0] == losses[1]
    states = [one.network.state_dict() for one in trained]
    for name, tensor in states[0].items():  # running statistics too: each batch counts once
        if not name.endswith("num_batches_tracked"):  # which nothing reads
            assert torch.equal(tensor, states[1][name]), name
    peaks = [
        peak_live_bytes(
            partial(method, name, model="resnet8", width=0.5), lambda one: take_steps(one, 1)
        )
        for name in ("bp-fp32", "bp-fp32-checkpoint")
    ]
    assert peaks[1] < 0.9 * peaks[0]


def test_int8_weights_stay_on_their_codes():
    trained = method("bp-int8-codes")
    (first, *_) = (layer for layer in trained.network.modules() if isinstance(layer, Int8Layer))
    before = first.weight.detach().clone()
    scale = before.abs().max() / 127
    take_steps(trained, 3)
    moved = (first.weight.detach() - before) / scale
    assert moved.abs().max() >= 1
    torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)
    assert first.weight.abs().max() <= 127.001 * scale


def test_ui8_scales_the_rate_of_each_layer_alone():
    trained = method("bp-ui8", learning_rate=1e-3)
    for layer, factor in zip(trained._twins, (1.0, 0.5, 0.1), strict=True):
        layer.quantizer = Unrounded()
        layer.quantizer.quantize = Nearest(EAGER).quantize
        layer.quantizer.learning_rate_factor = factor
    before = [layer.bias.detach().clone() for layer in trained._twins]
    take_steps(trained, 1)
    # Adam's first step is its rate wherever there is a gradient.
    moved = [
        (layer.bias.detach() - b).abs().max().item()
        for layer, b in zip(trained._twins, before, strict=True)
    ]
    assert moved == pytest.approx([1e-3, 5e-4, 1e-4], rel=1e-3)


@pytest.mark.parametrize("name", ["bp-fp32", "bp-int8-strong"])
def test_only_matrices_decay(name):
    trained = method(name, learning_rate=0.1, weight_decay=0.5)
    layer = trained.network.units[0][0]
    with torch.no_grad():
        layer.bias.fill_(-100.0)  # every ReLU is silent: no gradient
    before = layer.weight.detach().clone()
    take_steps(trained, 1)
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before)
    assert (layer.bias == -100.0).all()


@pytest.mark.parametrize(
    ("shape", "features"),
    [((8, 8, 64), 1024), ((4, 4, 512), 2048), ((8, 8, 256), 2048), ((2, 2, 64), 256)],
)
def test_the_head_is_that_of_forward_forward(shape, features):
    head = PooledLinear(shape, 10)
    assert head.linear.in_features == features
    height, width, channels = shape
    assert head(torch.zeros(2, channels, height, width)).shape == (2, 10)


def test_a_convolution_in_groups_has_no_twin():
    grouped = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2, bias=False))
    with pytest.raises(ValueError, match="every channel must be a group, or none"):
        convert_to_int8(grouped, Nearest, EAGER)
