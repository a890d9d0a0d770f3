"""EfficientNet-B0: inverted residuals with a squeeze-and-excitation and SiLU, each a unit.

Source: Tan & Le, arXiv 1905.11946v5, table 1; layer for layer that of torchvision, the last 1x1
conv included. Dropout and classifier are left out: goodness comes from each unit's own head.

Differs from the paper: small images keep more pixels (`models.scaling.fit_strides`), and
drop-connect (whole blocks left out at random, section 5.2) is left out: a unit that is not
computed has no loss to learn from.
"""

from __future__ import annotations

from models.mobile import Stage, mobile_units
from models.units import UnitSpec

STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)


def efficientnet_b0_units(input_shape: tuple[int, int, int], width: float) -> tuple[UnitSpec, ...]:
    """Stem, 16 inverted residuals, last conv, for one sample `[channels, height, width]`."""
    return mobile_units(input_shape, width, STAGES, "silu", squeeze_excite=True)
