"""From a description to a network in float torch."""

from __future__ import annotations

import torch

from models.base import FFModel, FFUnit
from models.blocks import BasicBlock, ConvUnit, InvertedResidual
from models.mlp import DenseUnit
from models.spec import ModelSpec
from models.units import (
    ConvUnitSpec,
    DenseUnitSpec,
    InvertedResidualUnitSpec,
    ResidualUnitSpec,
    UnitSpec,
)


def build_model(spec: ModelSpec, seed: int) -> FFModel:
    """A network with first weights drawn from `seed`.

    The same seed gives the same bits; torch's global generator is neither read nor moved.
    """
    generator = torch.Generator().manual_seed(seed)
    return FFModel([build_unit(unit, generator) for unit in spec.units])


def build_unit(spec: UnitSpec, generator: torch.Generator) -> FFUnit:
    """One unit with first weights drawn from `generator`.

    Raises:
        TypeError: No module is known for this kind of unit.
    """
    if isinstance(spec, DenseUnitSpec):
        return DenseUnit(spec.linear.inputs, spec.linear.outputs, generator)
    if isinstance(spec, ConvUnitSpec):
        return ConvUnit(spec, generator)
    if isinstance(spec, ResidualUnitSpec):
        return BasicBlock(spec, generator)
    if isinstance(spec, InvertedResidualUnitSpec):
        return InvertedResidual(spec, generator)
    raise TypeError(f"no module for unit {type(spec).__name__}")
