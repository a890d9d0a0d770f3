"""MobileNetV2: inverted residuals with linear bottlenecks, each a unit.

Source: Sandler et al., arXiv 1801.04381v4, table 2; layer for layer that of torchvision, the last
1x1 conv included. Dropout and classifier are left out: goodness comes from each unit's own head.

Differs from the paper: small images keep more pixels (`models.scaling.fit_strides`), and a width
below 1 narrows the last conv too, where section 4 of the paper leaves it at 1280 channels: beside
a narrow network on a device, that layer and its head would be most of the weights.
"""

from __future__ import annotations

from models.mobile import Stage, mobile_units
from models.units import UnitSpec

STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 32, 3, 2, 3),
    Stage(6, 64, 4, 2, 3),
    Stage(6, 96, 3, 1, 3),
    Stage(6, 160, 3, 2, 3),
    Stage(6, 320, 1, 1, 3),
)


def mobilenet_v2_units(input_shape: tuple[int, int, int], width: float) -> tuple[UnitSpec, ...]:
    """Stem, 17 inverted residuals, last conv, for one sample `[channels, height, width]`."""
    return mobile_units(input_shape, width, STAGES, "relu6", squeeze_excite=False)
