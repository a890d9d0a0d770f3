"""Conv units compute what their sources say: against the formulas in NumPy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.blocks import BasicBlock, ConvNormAct, ConvUnit, InvertedResidual, SqueezeExcite
from models.layers import BATCH_NORM_EPSILON, ConvLayer, SqueezeExciteSpec
from models.units import ConvUnitSpec, InvertedResidualUnitSpec, ResidualUnitSpec

SIZE = (6, 5)
# float64 sums of some hundred products, in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def layer(inputs, outputs, kernel=3, stride=1, *, depthwise=False, activation="relu", size=SIZE):
    return ConvLayer(inputs, outputs, kernel, stride, depthwise, activation, size)


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, no parameter at a value (0, 1) that could hide that it is used."""
    module.double()
    noise = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=noise, dtype=p.dtype), alpha=0.3)
    return module


def batch(channels: int) -> torch.Tensor:
    return torch.randn(4, channels, *SIZE, generator=generator(), dtype=torch.float64)


# --- the oracle: activities [B, H, W, C], as in the descriptions --------------------------------


def patches(x: np.ndarray, spec: ConvLayer) -> np.ndarray:
    """[B, Ho, Wo, k, k, C]: kernel row, kernel column, channel."""
    pad, k = spec.kernel // 2, spec.kernel
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = spec.out_size
    found = np.empty((len(x), height, width, k, k, x.shape[3]))
    for i in range(height):
        for j in range(width):
            top, left = i * spec.stride, j * spec.stride
            found[:, i, j] = padded[:, top : top + k, left : left + k]
    return found


def conv(x: np.ndarray, spec: ConvLayer, W: np.ndarray) -> np.ndarray:
    found = patches(x, spec)
    if spec.depthwise:
        return np.einsum("bhwijc,cij->bhwc", found, W.reshape(-1, spec.kernel, spec.kernel))
    return found.reshape(*found.shape[:3], -1) @ W.T


FUNCTIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def conv_norm_act(x: np.ndarray, spec: ConvLayer, module: ConvNormAct) -> np.ndarray:
    a = conv(x, spec, module.weight_matrix().numpy())
    mean, variance = a.mean(axis=(0, 1, 2)), a.var(axis=(0, 1, 2))
    gamma, beta = (p.detach().numpy() for p in (module.bn.weight, module.bn.bias))
    normed = (a - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    return FUNCTIONS[spec.activation](normed)


def gated(x: np.ndarray, module: SqueezeExcite) -> np.ndarray:
    W1, b1, W2, b2 = (
        p.detach().numpy()
        for p in (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
    )
    hidden = FUNCTIONS["silu"](x.mean(axis=(1, 2)) @ W1.T + b1)
    return x * (1 / (1 + np.exp(-(hidden @ W2.T + b2))))[:, None, None]


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


# --- layers -------------------------------------------------------------------------------------

LAYERS = {
    "1x1": layer(5, 7, 1, activation="none"),
    "3x3": layer(5, 7),
    "3x3, stride 2": layer(5, 7, stride=2, activation="relu6"),
    "1x1, stride 2": layer(5, 7, 1, 2, activation="none"),
    "depthwise": layer(5, 5, depthwise=True, activation="relu6"),
    "depthwise 5x5, stride 2": layer(5, 5, 5, 2, depthwise=True, activation="silu"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_conv_batch_norm_and_activation(name):
    spec = LAYERS[name]
    module, x = disturbed(ConvNormAct(spec, generator())), 4 * batch(5)
    wanted = conv_norm_act(channels_last(x), spec, module)
    np.testing.assert_allclose(channels_last(module(x)), wanted, **CLOSE)


def test_relu6_is_seen_to_cut():
    """Else the test above could not tell it from ReLU."""
    spec = LAYERS["3x3, stride 2"]
    module = ConvNormAct(spec, generator())
    with torch.no_grad():
        module.bn.weight.fill_(20)
    assert module(batch(5).float()).max() == 6


def test_running_statistics_take_the_place_of_the_batchs_in_eval_mode():
    spec = layer(5, 7, activation="none")
    module, x = disturbed(ConvNormAct(spec, generator())), batch(5)
    module.bn.running_mean.copy_(torch.arange(7))
    module.bn.running_var.copy_(torch.arange(1, 8))
    a = conv(channels_last(x), spec, module.weight_matrix().numpy())
    gamma, beta = (p.detach().numpy() for p in (module.bn.weight, module.bn.bias))
    wanted = (a - np.arange(7)) / np.sqrt(np.arange(1, 8) + BATCH_NORM_EPSILON) * gamma + beta
    np.testing.assert_allclose(channels_last(module.eval()(x)), wanted, **CLOSE)


def test_the_weight_matrix_is_a_copy():
    module = ConvNormAct(layer(5, 7, 1), generator())
    before = module.conv.weight.clone()
    module.weight_matrix().zero_()
    assert torch.equal(module.conv.weight, before)


@pytest.mark.parametrize(
    ("spec", "fan_out"),
    [
        (layer(100, 200, stride=2), 9 * 200),
        (layer(200, 500, 1), 500),
        (layer(3000, 3000, 5, depthwise=True), 25),
    ],
)
def test_first_weights_have_variance_two_over_fan_out(spec, fan_out):
    module = ConvNormAct(spec, generator())
    w = module.conv.weight.detach().double()
    # 4 sigma of the mean and of the variance of normal draws.
    assert abs(w.mean()) < 4 * np.sqrt(2 / fan_out / w.numel())
    assert w.var().item() == pytest.approx(2 / fan_out, rel=4 * np.sqrt(2 / w.numel()))
    assert (module.bn.weight == 1).all()
    assert (module.bn.bias == 0).all()


def test_squeeze_and_excitation_gates_channels_by_their_means():
    module, x = disturbed(SqueezeExcite(SqueezeExciteSpec(6, 2), generator())), batch(6)
    np.testing.assert_allclose(channels_last(module(x)), gated(channels_last(x), module), **CLOSE)


def test_an_untrained_gate_has_no_bias():
    module = SqueezeExcite(SqueezeExciteSpec(6, 2), generator())
    assert not module.fc1.bias.any()
    assert not module.fc2.bias.any()


# --- units --------------------------------------------------------------------------------------


def test_a_conv_unit_is_its_layer():
    spec = ConvUnitSpec(layer(3, 4))
    module, x = disturbed(ConvUnit(spec, generator())), batch(3)
    wanted = conv_norm_act(channels_last(x), spec.conv, module.conv)
    np.testing.assert_allclose(channels_last(module(x)), wanted, **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_basic_block_adds_the_shortcut_before_its_relu(stride):
    outputs = 4 if stride == 1 else 6
    conv1 = layer(4, outputs, stride=stride)
    conv2 = layer(outputs, outputs, activation="none", size=conv1.out_size)
    shortcut = None if stride == 1 else layer(4, outputs, 1, stride, activation="none")
    spec = ResidualUnitSpec(conv1, conv2, shortcut)
    module, x = disturbed(BasicBlock(spec, generator())), batch(4)
    inside = conv_norm_act(
        conv_norm_act(channels_last(x), conv1, module.conv1), conv2, module.conv2
    )
    around = channels_last(x)
    if shortcut is not None:
        around = conv_norm_act(around, shortcut, module.shortcut)
    np.testing.assert_allclose(channels_last(module(x)), np.maximum(inside + around, 0), **CLOSE)


@pytest.mark.parametrize("expands", [False, True])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_an_inverted_residual_is_linear_at_its_end(expands, gates, skip):
    inner = 12 if expands else 4
    expand = layer(4, inner, 1, activation="relu6") if expands else None
    middle = layer(inner, inner, 5, depthwise=True, activation="relu6")
    project = layer(inner, 4, 1, activation="none")
    gate = SqueezeExciteSpec(inner, 2) if gates else None
    spec = InvertedResidualUnitSpec(expand, middle, gate, project, skip)
    module, x = disturbed(InvertedResidual(spec, generator())), batch(4)
    y = channels_last(x)
    if expand is not None:
        y = conv_norm_act(y, expand, module.expand)
    y = conv_norm_act(y, middle, module.depthwise)
    if gate is not None:
        y = gated(y, module.squeeze_excite)
    y = conv_norm_act(y, project, module.project)
    if skip:
        y = y + channels_last(x)
    assert (y < 0).any()
    np.testing.assert_allclose(channels_last(module(x)), y, **CLOSE)
