"""Units that answer: the integers that were learned, with fixed scales and nothing kept.

Every place where codes are made has the scale that training recorded for it, so that an answer does
not depend on which requests share a batch. A convolution's norm lies folded in its weights' scales
and its bias. No unit has state, so several threads may predict at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from engines.conv_products import ConvProducts, conv_products
from engines.conv_units import add_features
from engines.dense import dense_activity, direction
from engines.feature import Feature
from engines.fusion import Fusion
from engines.int8 import QTensor
from engines.precision import Accumulated, Precision
from engines.squeeze_excite import PARAMETERS, apply_gate, squeeze
from models.layers import ConvLayer
from models.units import (
    ConvUnitSpec,
    DenseUnitSpec,
    InvertedResidualUnitSpec,
    ResidualUnitSpec,
    UnitSpec,
)


class Answered(NamedTuple):
    """What a unit gives.

    Args:
        activity: What its goodness is read from, float32 `[B, N]` or NHWC.
        output: What the next unit gets: float32 of a dense unit, which quantizes its own input;
            a feature of a conv unit.
    """

    activity: Tensor
    output: Tensor | Feature


class PredictUnit(ABC):
    """One unit that answers."""

    @abstractmethod
    def forward(self, x: Tensor | Feature) -> Answered:
        """Activity and output for what the unit before gave."""


class FirstUnit(PredictUnit):
    """A unit of one layer, whose integer sums can be had before anything is done to them."""

    @abstractmethod
    def accumulator(self, a: Feature) -> Tensor:
        """int32 `[B, out]` or `[B, Ho, Wo, O]`: linear in the codes."""

    @abstractmethod
    def answer(self, accumulator: Tensor, scale: Tensor) -> Answered:
        """Activity and output for such sums of an input with this scale."""


def open_predict_unit(
    spec: UnitSpec, arrays: Mapping[str, Tensor], precision: Precision, fusion: Fusion
) -> PredictUnit:
    """The unit that `arrays`, named as in `engines.base.expected_arrays`, describe.

    Raises:
        TypeError: No executor is known for this kind of unit.
    """
    if isinstance(spec, DenseUnitSpec):
        return _Dense(arrays, precision)
    parts = _ConvParts(arrays, precision, fusion)
    if isinstance(spec, ConvUnitSpec):
        return _Conv(parts, spec)
    if isinstance(spec, ResidualUnitSpec):
        return _Residual(parts, spec)
    if isinstance(spec, InvertedResidualUnitSpec):
        return _InvertedResidual(parts, spec)
    raise TypeError(f"no executor for unit {type(spec).__name__}")


class _Dense(FirstUnit):
    def __init__(self, arrays: Mapping[str, Tensor], precision: Precision) -> None:
        self._weight = QTensor(arrays["weight.codes"], arrays["weight.scale"])
        self._bias = arrays["bias"]
        self._input_scale = arrays["input_scale"]
        self._precision = precision

    def forward(self, x: Tensor | Feature) -> Answered:
        assert isinstance(x, Tensor)  # noqa: S101 - narrows the type
        codes = self._precision.quantize(x, self._input_scale)
        return self.answer(self.accumulator(Feature(codes, self._input_scale)), self._input_scale)

    def accumulator(self, a: Feature) -> Tensor:
        # [B, in] @ [in, out], int32
        return self._precision.linear(a.codes, self._weight.codes)

    def answer(self, accumulator: Tensor, scale: Tensor) -> Answered:
        product = Accumulated(accumulator, scale)
        activity = dense_activity(product, self._weight.scale, self._bias)
        return Answered(activity, direction(activity))


class _ConvParts:
    def __init__(self, arrays: Mapping[str, Tensor], precision: Precision, fusion: Fusion) -> None:
        self.arrays = arrays
        self.precision = precision
        self.fusion = fusion

    def layer(self, name: str, layer: ConvLayer) -> _FoldedConv:
        products = conv_products(layer, self.precision, self.fusion, None)
        return _FoldedConv(self.named(name), layer, products, self.precision)

    def named(self, part: str) -> dict[str, Tensor]:
        prefix = f"{part}."
        return {n[len(prefix) :]: t for n, t in self.arrays.items() if n.startswith(prefix)}

    def end(self, feature: Feature) -> Answered:
        return Answered(feature.dequantize(self.precision), feature)


class _FoldedConv:
    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        layer: ConvLayer,
        products: ConvProducts,
        precision: Precision,
    ) -> None:
        self._codes = arrays["weight.codes"]
        self._scale = arrays["weight.scale"][:, 0]
        self._bias = arrays["bias"]
        self._output_scale = arrays["output_scale"]
        self._activation = layer.activation
        self._products = products
        self._precision = precision

    def forward(self, a: Feature) -> Feature:
        return self.finish(self.accumulator(a), a.scale)

    def accumulator(self, a: Feature) -> Tensor:
        return self._products.forward(a, self._codes)  # int32 [B, Ho, Wo, O]

    def finish(self, sums: Tensor, scale: Tensor) -> Feature:
        z = sums * (self._scale * scale) + self._bias
        codes = self._precision.quantize(z, self._output_scale)
        return Feature(codes, self._output_scale, self._activation)


class _Conv(FirstUnit):
    def __init__(self, parts: _ConvParts, spec: ConvUnitSpec) -> None:
        self._parts = parts
        self._conv = parts.layer("conv", spec.conv)

    def forward(self, x: Tensor | Feature) -> Answered:
        assert isinstance(x, Feature)  # noqa: S101 - narrows the type
        return self._parts.end(self._conv.forward(x))

    def accumulator(self, a: Feature) -> Tensor:
        return self._conv.accumulator(a)

    def answer(self, accumulator: Tensor, scale: Tensor) -> Answered:
        return self._parts.end(self._conv.finish(accumulator, scale))


class _Residual(PredictUnit):
    def __init__(self, parts: _ConvParts, spec: ResidualUnitSpec) -> None:
        self._parts = parts
        self._conv1 = parts.layer("conv1", spec.conv1)
        self._conv2 = parts.layer("conv2", spec.conv2)
        self._shortcut = parts.layer("shortcut", spec.shortcut) if spec.shortcut else None
        self._scale = parts.arrays["sum.output_scale"]

    def forward(self, x: Tensor | Feature) -> Answered:
        assert isinstance(x, Feature)  # noqa: S101 - narrows the type
        branch = self._conv2.forward(self._conv1.forward(x))
        around = x if self._shortcut is None else self._shortcut.forward(x)
        codes, scale = add_features(self._parts.precision, branch, around, self._scale)
        return self._parts.end(Feature(codes, scale, "relu"))


class _InvertedResidual(PredictUnit):
    def __init__(self, parts: _ConvParts, spec: InvertedResidualUnitSpec) -> None:
        self._parts = parts
        self._expand = parts.layer("expand", spec.expand) if spec.expand else None
        self._depthwise = parts.layer("depthwise", spec.depthwise)
        self._gate = parts.named("squeeze_excite") if spec.squeeze_excite else None
        self._project = parts.layer("project", spec.project)
        self._scale = parts.arrays["sum.output_scale"] if spec.skip else None

    def forward(self, x: Tensor | Feature) -> Answered:
        assert isinstance(x, Feature)  # noqa: S101 - narrows the type
        precision = self._parts.precision
        inner = x if self._expand is None else self._expand.forward(x)
        inner = self._depthwise.forward(inner)
        if self._gate is not None:
            opened = squeeze(precision, inner, {name: self._gate[name] for name in PARAMETERS})
            scale = self._gate["output_scale"]
            codes, scale = apply_gate(precision, inner, opened.gate, scale)
            inner = Feature(codes, scale)
        output = self._project.forward(inner)
        if self._scale is not None:
            output = Feature(*add_features(precision, output, x, self._scale))
        return self._parts.end(output)
