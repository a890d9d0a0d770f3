"""Layers and units in numbers: what torch computes from the same numbers, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.layers import ConvLayer, DenseLayer, SqueezeExciteSpec
from models.units import (
    ConvUnitSpec,
    DenseUnitSpec,
    InvertedResidualUnitSpec,
    ResidualUnitSpec,
)

sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), sizes
)
def test_a_conv_layer_has_the_sizes_of_torchs(inputs, outputs, kernel, stride, size):
    layer = ConvLayer(inputs, outputs, kernel, stride, False, "relu", size)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, device="meta")
    given_x = torch.empty(1, inputs, *size, device="meta")
    check(layer, conv, given_x)


@given(st.integers(1, 9), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), sizes)
def test_a_depthwise_layer_has_the_sizes_of_torchs(channels, kernel, stride, size):
    layer = ConvLayer(channels, channels, kernel, stride, True, "silu", size)
    conv = nn.Conv2d(
        channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False, device="meta"
    )
    check(layer, conv, torch.empty(1, channels, *size, device="meta"))


def check(layer: ConvLayer, conv: nn.Conv2d, x: torch.Tensor) -> None:
    y = conv(x)
    per_output = conv.weight[0].numel()
    height, width, channels = layer.output_shape
    assert y.shape == (1, channels, height, width)
    assert x.shape[1:] == (layer.input_shape[2], *layer.input_shape[:2])
    assert layer.padding == conv.padding[0]
    assert layer.weight_shape == (channels, per_output)
    assert layer.contraction == per_output
    assert layer.macs == y.numel() * per_output
    norm = nn.BatchNorm2d(channels, device="meta")
    assert layer.parameters == sum(p.numel() for m in (conv, norm) for p in m.parameters())


def test_a_dense_layer_in_numbers():
    layer = DenseLayer(7, 5)
    unit = DenseUnitSpec(layer)
    assert layer.weight_shape == (5, 7)
    assert (layer.contraction, layer.parameters, layer.macs) == (7, 40, 35)
    assert (unit.input_shape, unit.output_shape) == ((7,), (5,))
    assert unit.layers == {"linear": layer}


def test_a_gate_in_numbers():
    gate = SqueezeExciteSpec(channels=12, reduced=2)
    assert (gate.parameters, gate.macs) == (12 * 2 + 2 + 2 * 12 + 12, 48)


def conv(inputs: int, outputs: int, *, activation="relu", **changes) -> ConvLayer:
    layer = ConvLayer(inputs, outputs, 1, 1, False, activation, (8, 6))
    return dataclasses.replace(layer, **changes)


def depthwise(channels: int, **changes) -> ConvLayer:
    return conv(channels, channels, kernel=3, depthwise=True, **changes)


def test_a_unit_adds_up_its_parts_and_its_layers_leave_out_the_gate():
    gate = SqueezeExciteSpec(24, 1)
    expand, middle, project = conv(4, 24), depthwise(24), conv(24, 4, activation="none")
    unit = InvertedResidualUnitSpec(expand, middle, gate, project, skip=True)
    assert list(unit.parts) == ["expand", "depthwise", "squeeze_excite", "project"]
    assert list(unit.layers) == ["expand", "depthwise", "project"]
    assert unit.parameters == sum(p.parameters for p in (expand, middle, gate, project))
    assert unit.macs == sum(p.macs for p in (expand, middle, gate, project))
    assert (unit.input_shape, unit.output_shape) == ((8, 6, 4), (8, 6, 4))


def test_what_a_unit_has_not_is_not_among_its_layers():
    plain = ResidualUnitSpec(conv(4, 4), conv(4, 4, activation="none"), None)
    assert list(plain.layers) == ["conv1", "conv2"]
    unit = InvertedResidualUnitSpec(
        None, depthwise(4, stride=2), None, conv(4, 9, activation="none", in_size=(4, 3)), False
    )
    assert list(unit.layers) == ["depthwise", "project"]
    assert (unit.input_shape, unit.output_shape) == ((8, 6, 4), (4, 3, 9))
    assert list(ConvUnitSpec(conv(3, 4)).layers) == ["conv"]


def linear(inputs: int, outputs: int, **changes) -> ConvLayer:
    return conv(inputs, outputs, activation="none", **changes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: conv(4, 4, kernel=2), "kernel is 2; wanted an odd number"),
        (lambda: conv(4, 5, depthwise=True), "keeps its channels: 4 in, 5 out"),
        (lambda: conv(0, 4), "size below 1"),
        (lambda: conv(4, 4, stride=0), "size below 1"),
        (lambda: conv(4, 4, in_size=(8, 0)), "size below 1"),
        (
            lambda: ResidualUnitSpec(conv(4, 4), linear(5, 4), None),
            r"conv2 needs shape \[8, 6, 5\], it is given \[8, 6, 4\]",
        ),
        (lambda: ResidualUnitSpec(conv(4, 4), conv(4, 4), None), "after the sum, not in conv2"),
        (
            lambda: ResidualUnitSpec(conv(4, 5), linear(5, 5), None),
            r"the sum with the input needs shape \[8, 6, 5\], it is given \[8, 6, 4\]",
        ),
        (
            lambda: ResidualUnitSpec(conv(4, 5), linear(5, 5), linear(3, 5)),
            r"the shortcut needs shape \[8, 6, 3\]",
        ),
        (
            lambda: ResidualUnitSpec(conv(4, 5), linear(5, 5), linear(4, 6)),
            r"the sum with the shortcut needs shape \[8, 6, 5\], it is given \[8, 6, 6\]",
        ),
        (
            lambda: ResidualUnitSpec(conv(4, 5), linear(5, 5), conv(4, 5)),
            "after the sum, not in the shortcut",
        ),
        (
            lambda: InvertedResidualUnitSpec(None, conv(4, 4), None, linear(4, 4), True),
            "the middle layer of an inverted residual is depthwise",
        ),
        (
            lambda: InvertedResidualUnitSpec(conv(4, 8), depthwise(9), None, linear(9, 4), True),
            r"depthwise needs shape \[8, 6, 9\], it is given \[8, 6, 8\]",
        ),
        (
            lambda: InvertedResidualUnitSpec(
                None, depthwise(4), SqueezeExciteSpec(5, 1), linear(4, 4), True
            ),
            "the gate is for 5 channels, the depthwise layer has 4",
        ),
        (
            lambda: InvertedResidualUnitSpec(None, depthwise(4), None, linear(5, 4), True),
            r"project needs shape \[8, 6, 5\]",
        ),
        (
            lambda: InvertedResidualUnitSpec(None, depthwise(4), None, conv(4, 4), True),
            "the projection is linear",
        ),
        (
            lambda: InvertedResidualUnitSpec(None, depthwise(4), None, linear(4, 5), True),
            "the sum with the input",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
