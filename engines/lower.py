"""From a description and first weights to units that learn.

The float modules (models/) say what the first weights are, the description what is connected to
what; nothing of the modules is left in the units. Weight matrices go to masters of their own
(engines/masters.py); what is small (biases, gammas, betas, gates, heads) goes to one set of float32
masters for the whole network, which is stepped once a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engines.conv_norm import ConvNormTrainLayer
from engines.conv_products import conv_products
from engines.conv_units import ConvTrainUnit, InvertedResidualTrainUnit, ResidualTrainUnit
from engines.dense import DenseTrainUnit
from engines.fusion import Fusion
from engines.heads import Head
from engines.im2col import ConvScratch
from engines.masters import open_masters
from engines.optim import FloatMasters
from engines.precision import Precision
from engines.recipe import Optimizer, Recipe
from engines.squeeze_excite import PARAMETERS, SqueezeExciteTrainLayer
from engines.unit import Gradients, TrainUnit
from models.base import FFModel, FFUnit
from models.blocks import ConvNormAct
from models.layers import ConvLayer, SqueezeExciteSpec
from models.mlp import DenseUnit
from models.spec import ModelSpec
from models.units import (
    ConvUnitSpec,
    DenseUnitSpec,
    InvertedResidualUnitSpec,
    ResidualUnitSpec,
    UnitSpec,
)


class Lowered(NamedTuple):
    """A network that learns.

    Args:
        units: First to last.
        parameters: Masters of all that is small.
        gradients: Where the units and the trainer put the gradients of `parameters`.
    """

    units: list[TrainUnit]
    parameters: FloatMasters
    gradients: Gradients


def lower(
    spec: ModelSpec,
    model: FFModel,
    heads: list[Head],
    recipe: Recipe,
    precision: Precision,
    fusion: Fusion,
    device: torch.device | str = "cpu",
) -> Lowered:
    """The network that `model` gives the first weights of.

    Args:
        spec: Its description.
        model: Float modules in the order of `spec.units`, on the CPU, so that first weights are the
            same on every device; its tensors are copied.
        heads: One a unit.
        recipe: Masters and optimizer.
        precision: Arithmetic.
        fusion: Fuses the chains.
        device: Where the network's tensors lie.
    """
    first: dict[str, Tensor] = {}
    for index, (unit, head) in enumerate(zip(_modules(model), heads, strict=True)):
        for name, parameter in unit.named_parameters():
            if small := _small_name(name):
                first[f"units.{index}.{small}"] = parameter.to(device)
        for name, tensor in head.first_parameters().items():
            first[f"heads.{index}.{name}"] = tensor.to(device)
    parameters = FloatMasters(first, Optimizer(recipe.optimizer.name))
    gradients = Gradients()
    builder = _Builder(recipe, precision, fusion, parameters.tensors, gradients, device)
    units = [
        builder.unit(index, unit_spec, module)
        for index, (unit_spec, module) in enumerate(zip(spec.units, _modules(model), strict=True))
    ]
    return Lowered(units, parameters, gradients)


def _modules(model: FFModel) -> list[FFUnit]:
    # torch types what a ModuleList gives as any module.
    return [unit for unit in model.units if isinstance(unit, FFUnit)]


def _small_name(name: str) -> str | None:
    """A module's parameter under the unit's name for it; None for a weight matrix."""
    if name.endswith("conv.weight") or name == "linear.weight":
        return None
    for ending, word in (("bn.weight", "gamma"), ("bn.bias", "beta"), ("linear.bias", "bias")):
        if name.endswith(ending):
            return name[: -len(ending)] + word
    return name


class _Builder:
    def __init__(
        self,
        recipe: Recipe,
        precision: Precision,
        fusion: Fusion,
        parameters: Mapping[str, Tensor],
        gradients: Gradients,
        device: torch.device | str,
    ) -> None:
        self._recipe = recipe
        self._precision = precision
        self._fusion = fusion
        self._parameters = parameters
        self._gradients = gradients
        self._device = device
        self._scratch = ConvScratch(device)

    def unit(self, index: int, spec: UnitSpec, module: FFUnit) -> TrainUnit:
        if isinstance(spec, DenseUnitSpec):
            assert isinstance(module, DenseUnit)  # noqa: S101 - narrows the type
            name = f"units.{index}.bias"
            return DenseTrainUnit(
                index,
                open_masters(
                    self._recipe.masters,
                    module.linear.weight.detach().to(self._device),
                    self._precision,
                    self._recipe.optimizer,
                    self._fusion,
                ),
                self._parameters[name],
                self._gradients,
                name,
                self._precision,
                self._fusion,
            )
        if isinstance(spec, ConvUnitSpec):
            conv = self._layer(index, 0, "conv", spec.conv, module)
            return ConvTrainUnit(conv)
        if isinstance(spec, ResidualUnitSpec):
            return ResidualTrainUnit(
                self._layer(index, 0, "conv1", spec.conv1, module),
                self._layer(index, 1, "conv2", spec.conv2, module),
                self._layer(index, 2, "shortcut", spec.shortcut, module) if spec.shortcut else None,
                self._precision,
                self._fusion,
                self._device,
            )
        if isinstance(spec, InvertedResidualUnitSpec):
            return InvertedResidualTrainUnit(
                self._layer(index, 0, "expand", spec.expand, module) if spec.expand else None,
                self._layer(index, 1, "depthwise", spec.depthwise, module),
                self._gate(index, spec.squeeze_excite) if spec.squeeze_excite else None,
                self._layer(index, 2, "project", spec.project, module),
                skip=spec.skip,
                precision=self._precision,
                fusion=self._fusion,
                device=self._device,
            )
        raise TypeError(f"no executor for unit {type(spec).__name__}")

    def _layer(
        self, unit: int, place: int, part: str, layer: ConvLayer, module: FFUnit
    ) -> ConvNormTrainLayer:
        block = getattr(module, part)
        assert isinstance(block, ConvNormAct)  # noqa: S101 - narrows the type
        name = f"units.{unit}.{part}"
        return ConvNormTrainLayer(
            layer,
            (unit, place),
            open_masters(
                self._recipe.masters,
                block.weight_matrix().to(self._device),
                self._precision,
                self._recipe.optimizer,
                self._fusion,
            ),
            self._parameters[f"{name}.gamma"],
            self._parameters[f"{name}.beta"],
            self._gradients,
            name,
            conv_products(layer, self._precision, self._fusion, self._scratch),
            self._precision,
            self._fusion,
        )

    def _gate(self, unit: int, spec: SqueezeExciteSpec) -> SqueezeExciteTrainLayer:
        name = f"units.{unit}.squeeze_excite"
        return SqueezeExciteTrainLayer(
            {part: self._parameters[f"{name}.{part}"] for part in PARAMETERS},
            self._gradients,
            name,
            self._precision,
            self._fusion,
        )
