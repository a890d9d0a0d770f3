"""The float reference: a network as a list of units, each trained by a loss of its own.

A unit maps its input `x_l` to an activity `y_l`. The goodness of a dense unit is the length of
`y_l`, in groups; so the next unit sees only the direction, as the length would hand it the answer
for free (Hinton 2022, arXiv 2212.13345v1, section 2). A conv unit's goodness comes from a linear
head and batch norm keeps its scale, so its activity is passed on as it is:

    x_{l+1} = length_normalize(y_l)    dense
    x_{l+1} = y_l                      conv

Nothing here knows about INT8, losses or training: engines walk the units from outside.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.layers import LENGTH_EPSILON


def length_normalize(activity: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by its root mean square, without subtracting the mean.

    `z = y / n` with `n = sqrt(mean(y^2) + eps)`.

    Args:
        activity: `y`, float `[batch, width]`.

    Returns:
        `z`, float `[batch, width]`, and `n`, float `[batch, 1]`.
    """
    length = length_of(activity)
    return activity / length, length


def length_of(activity: Tensor) -> Tensor:
    """`n`, float `[batch, 1]`; see `length_normalize`."""
    return activity.square().mean(dim=1, keepdim=True).add_(LENGTH_EPSILON).sqrt_()


class FFUnit(nn.Module, ABC):
    """One locally trained unit: a layer or a block, activation function included."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Activity of the unit, for the first input or what the unit below passes on."""


class FFModel(nn.Module):
    """Ordered units, with length normalisation between dense ones.

    Args:
        units: The units, first to last.
    """

    def __init__(self, units: list[FFUnit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Activity of every unit.

        Args:
            x: Float `[batch, features]`; for conv units `[batch, channels, height, width]`.

        Returns:
            Per unit a float `[batch, width]` or `[batch, channels, height, width]`.
        """
        activities: list[Tensor] = []
        for unit in self.units:
            activity: Tensor = unit(x)
            activities.append(activity)
            x = length_normalize(activity)[0] if activity.dim() == 2 else activity
        return activities


def scaled_normal(shape: tuple[int, ...], fan: int, generator: torch.Generator) -> Tensor:
    """Weights from N(0, 2 / fan).

    With the fan-in it keeps the mean square of activities across a ReLU, with the fan-out that of
    errors on their way back.

    Source: He et al. 2015, arXiv 1502.01852v1, eq. 10 and 14.
    """
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / fan)
