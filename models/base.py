"""The float reference: a network as a list of units, each trained by a loss of its own.

A unit maps its input `x_l` to an activity `y_l`. Its goodness is read from `y_l`; the next unit
sees only the direction of `y_l`, not its length, because the length *is* the goodness and would
otherwise hand the next unit the answer for free (Hinton 2022, arXiv 2212.13345, section 2):

    x_{l+1} = length_normalize(y_l)

Nothing here knows about INT8, losses or training: engines walk the units from outside.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

LENGTH_EPSILON = 1e-6


def length_normalize(activity: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by its root mean square, without subtracting the mean.

    `z = y / n` with `n = sqrt(mean(y^2) + eps)`.

    Args:
        activity: `y`, float `[batch, width]`.

    Returns:
        `z`, float `[batch, width]`, and `n`, float `[batch, 1]`.
    """
    length = activity.square().mean(dim=1, keepdim=True).add_(LENGTH_EPSILON).sqrt_()
    return activity / length, length


class FFUnit(nn.Module, ABC):
    """One locally trained unit: a layer or a block, activation function included."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Activity of the unit for a length-normalised (or first) input."""


class FFModel(nn.Module):
    """Ordered units with length normalisation between them.

    Args:
        units: The units, first to last.
    """

    def __init__(self, units: list[FFUnit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Activity of every unit.

        Args:
            x: Float `[batch, features]`.

        Returns:
            One float `[batch, width]` per unit.
        """
        activities: list[Tensor] = []
        for unit in self.units:
            activities.append(unit(x))
            x, _ = length_normalize(activities[-1])
        return activities


def scaled_normal(shape: tuple[int, int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Weights from N(0, 2 / fan_in), which keeps the mean square of ReLU activities near 1.

    Source: He et al. 2015, arXiv 1502.01852, eq. 10.
    """
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / fan_in)
