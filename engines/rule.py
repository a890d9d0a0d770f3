"""What a recipe's objective asks of each unit: a head, and a loss on its goodness."""

from __future__ import annotations

from typing import NamedTuple

from engines.heads import GroupHead, Head, LinearHead
from engines.objective import ClassGoodness, Objective
from engines.recipe import Recipe
from models.spec import ModelSpec
from models.units import DenseUnitSpec


class Rule(NamedTuple):
    """Heads and loss.

    Args:
        heads: One a unit.
        objective: The loss on each unit's goodness.
    """

    heads: list[Head]
    objective: Objective


def open_rule(spec: ModelSpec, recipe: Recipe) -> Rule:
    """The rule of a network.

    Dense units have groups of activities, units made of convolutions a linear head each, which
    finds its own sharpness.
    """
    if isinstance(spec.units[-1], DenseUnitSpec):
        return Rule(
            [GroupHead(spec.max_classes)] * len(spec.units), ClassGoodness(spec.max_classes)
        )
    heads: list[Head] = [LinearHead(spec.max_classes, unit.output_shape) for unit in spec.units]
    return Rule(heads, ClassGoodness(spec.max_classes, alpha=1.0))
