"""What MobileNetV2 and EfficientNet share: stem, stages of inverted residuals, last 1x1 conv."""

from __future__ import annotations

from typing import NamedTuple

from models.layers import Activation, ConvLayer, SqueezeExciteSpec
from models.scaling import fit_strides, scale_channels
from models.units import ConvUnitSpec, InvertedResidualUnitSpec, UnitSpec

STEM_CHANNELS = 32
LAST_CHANNELS = 1280


class Stage(NamedTuple):
    """A row of the papers' tables.

    Args:
        expansion: t; a block is t times as wide inside as its input.
        channels: c, of the stage's activities, before the width factor.
        repeats: n; blocks.
        stride: s, of the first block; the others have 1.
        kernel: k, of the depthwise layers.
    """

    expansion: int
    channels: int
    repeats: int
    stride: int
    kernel: int


def mobile_units(
    input_shape: tuple[int, int, int],
    width: float,
    stages: tuple[Stage, ...],
    activation: Activation,
    *,
    squeeze_excite: bool,
) -> tuple[UnitSpec, ...]:
    """The network as units: stem, every block, last conv.

    Args:
        input_shape: Of one sample, `[channels, height, width]`.
        width: Factor on every channel count but the input's.
        stages: First to last.
        activation: After every layer but the projections.
        squeeze_excite: Gate every block, a quarter of its input's channels wide.
    """
    in_channels, height, image_width = input_shape
    size = (height, image_width)
    stem_stride, *strides = fit_strides((2, *(stage.stride for stage in stages)), size)
    stem = ConvLayer(
        in_channels, scale_channels(STEM_CHANNELS, width), 3, stem_stride, False, activation, size
    )
    units: list[UnitSpec] = [ConvUnitSpec(stem)]
    below = stem
    for stage, stride in zip(stages, strides, strict=True):
        channels = scale_channels(stage.channels, width)
        for block in range(stage.repeats):
            unit = _block(
                below, channels, stage, stride if block == 0 else 1, activation, squeeze_excite
            )
            units.append(unit)
            below = unit.project
    last = scale_channels(LAST_CHANNELS, width)
    units.append(
        ConvUnitSpec(ConvLayer(below.out_channels, last, 1, 1, False, activation, below.out_size))
    )
    return tuple(units)


def _block(
    below: ConvLayer,
    channels: int,
    stage: Stage,
    stride: int,
    activation: Activation,
    squeeze_excite: bool,
) -> InvertedResidualUnitSpec:
    inputs, size = below.out_channels, below.out_size
    inner = inputs * stage.expansion
    widens = stage.expansion != 1
    depthwise = ConvLayer(inner, inner, stage.kernel, stride, True, activation, size)
    return InvertedResidualUnitSpec(
        expand=ConvLayer(inputs, inner, 1, 1, False, activation, size) if widens else None,
        depthwise=depthwise,
        squeeze_excite=SqueezeExciteSpec(inner, max(1, inputs // 4)) if squeeze_excite else None,
        project=ConvLayer(inner, channels, 1, 1, False, "none", depthwise.out_size),
        skip=stride == 1 and inputs == channels,
    )
