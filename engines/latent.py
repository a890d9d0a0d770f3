"""Latents: the int8 output of a prefix of units, which can be kept and learned from again.

What frozen units make of a sample is always the same codes. So replay may keep these latents in the
samples' place, and the prefix runs once a sample, wherever serving runs (Pellegrini et al. 2019,
arXiv 1912.01100v1, who slow the layers below down; here they stand still).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import ModelSpec
from models.units import DenseUnitSpec


class Latent(NamedTuple):
    """What the first units make of a batch, as the unit behind them takes it.

    Args:
        codes: int8 `[batch, N]` or `[batch, H, W, C]`, of the activity (of a dense unit: of its
            direction), so that no activation is to be applied any more.
        scale: float32 `[]`, what one step of the codes is worth; one per version, not per batch.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]


def latent_shape(spec: ModelSpec, units: int) -> tuple[int, ...]:
    """Shape of one sample's latent behind the first `units` units: `(N,)` or `(H, W, C)`.

    Raises:
        ValueError: Labels are an input of the first unit, or not at least one unit lies on either
            side.
    """
    if spec.label_places:
        raise ValueError(
            "under objective 'ff' labels enter at the first unit, so that no unit's output is its "
            "sample's alone; a prefix can be frozen under 'class_goodness'"
        )
    if not 1 <= units < len(spec.units):
        raise ValueError(
            f"a prefix of {units} units was asked for, of a network of {len(spec.units)}; wanted "
            "at least 1, and at least 1 behind it that learns"
        )
    return spec.units[units - 1].output_shape


def latent_scale_name(spec: ModelSpec, units: int) -> str:
    """Which of a version's arrays is the latents' scale; arguments as `latent_shape` has them."""
    last = spec.units[units - 1]
    if isinstance(last, DenseUnitSpec):
        return f"units.{units}.input_scale"
    part = "sum" if last.adds else [*last.parts][-1]
    return f"units.{units - 1}.{part}.output_scale"
