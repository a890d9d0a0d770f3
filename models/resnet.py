"""ResNet-8 and ResNet-18 for small images: a stem and basic blocks, each a unit.

| network | stem | channels of each stage | blocks a stage | source |
| --- | --- | --- | --- | --- |
| ResNet-8 | 3x3, stride 1 | 16, 32, 64 | 1 | MLPerf Tiny, `mlcommons/tiny`, image classification |
| ResNet-18 | 3x3, stride 1 | 64, 128, 256, 512 | 2 | He et al., arXiv 1512.03385v1, table 1 |

The stem is the one that He et al. use on CIFAR-10 (section 4.2), at every image size: no 7x7
window, no stride, no max-pool. Every stage but the first begins with a stride of 2. Where a block
changes the shape, its shortcut is a 1x1 conv with batch norm (their option B).

Differs from MLPerf Tiny: its convs have biases and its 1x1 shortcuts no batch norm.
"""

from __future__ import annotations

from models.layers import ConvLayer
from models.scaling import scale_channels
from models.units import ConvUnitSpec, ResidualUnitSpec, UnitSpec


def resnet8_units(input_shape: tuple[int, int, int], width: float) -> tuple[UnitSpec, ...]:
    """Stem and 3 blocks, for one sample `[channels, height, width]`."""
    return _units(input_shape, width, stages=(16, 32, 64), blocks=1)


def resnet18_units(input_shape: tuple[int, int, int], width: float) -> tuple[UnitSpec, ...]:
    """Stem and 8 blocks, for one sample `[channels, height, width]`."""
    return _units(input_shape, width, stages=(64, 128, 256, 512), blocks=2)


def _units(
    input_shape: tuple[int, int, int], width: float, stages: tuple[int, ...], blocks: int
) -> tuple[UnitSpec, ...]:
    in_channels, height, image_width = input_shape
    size = (height, image_width)
    stem = ConvLayer(in_channels, scale_channels(stages[0], width), 3, 1, False, "relu", size)
    units: list[UnitSpec] = [ConvUnitSpec(stem)]
    below = stem
    for stage, channels in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            unit = _basic_block(below, scale_channels(channels, width), stride)
            units.append(unit)
            below = unit.conv2
    return tuple(units)


def _basic_block(below: ConvLayer, channels: int, stride: int) -> ResidualUnitSpec:
    inputs, size = below.out_channels, below.out_size
    conv1 = ConvLayer(inputs, channels, 3, stride, False, "relu", size)
    conv2 = ConvLayer(channels, channels, 3, 1, False, "none", conv1.out_size)
    same_shape = stride == 1 and inputs == channels
    shortcut = None if same_shape else ConvLayer(inputs, channels, 1, stride, False, "none", size)
    return ResidualUnitSpec(conv1, conv2, shortcut)
