"""What one training step multiplies and rounds, counted by walking the network's description.

A layer has three products, forward, weight gradient and input gradient, of as many
multiply-accumulates (MACs) each; `P` is the sum of the first over all layers and the batch. How
often a layer's gradients are computed depends on the method:

    back-propagation    each once; no input gradient where the input is the network's own
    bp-gdai8-like       both gradients twice: a product for each part of the error
    Forward-Forward     whatever the look-ahead asks of each unit: it is run, and its questions are
                        counted (engines/look_ahead.py)

Beside the products, what exists only because operands are integers, the paper's "quantization
phase": of every element that is rounded to a code under a new scale, one comparison (the running
maximum) and one float multiply-add (divide by the scale, add the noise); of every accumulator, one
float multiply (its scales). Counted so, and not instruction by instruction: both depend on what a
compiler makes of them. Not counted, since all methods have it alike or it has no products: norms,
activation functions, losses, goodness, the optimizer, and codes mapped to codes under one scale.

Nothing is padded here; what kernels really multiply is `benchmarks/product_counter.py`'s to say.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch

from engines.look_ahead import Chain, LookAhead
from models import ModelSpec
from models.layers import ConvLayer, SqueezeExciteSpec
from models.pooling import pooled_shape
from models.units import DenseUnitSpec, ResidualUnitSpec, UnitSpec

_RECOMPUTED = "bp-fp32-checkpoint"
_FLOAT = ("bp-fp32", _RECOMPUTED)
_SHARED_CODES = ("bp-int8", "bp-int8-codes", "bp-gdai8-like")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one step, or of a part of it.

    Args:
        int8_gemm: INT8 MACs in matrix products.
        int8_depthwise: INT8 MACs of depthwise convolutions, which are none.
        float32: Float MACs.
        rounded: Elements given a code under a new scale.
        rescaled: Accumulators given their scale.
    """

    int8_gemm: int = 0
    int8_depthwise: int = 0
    float32: int = 0
    rounded: int = 0
    rescaled: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(one + another for one, another in pairs))

    @property
    def int8(self) -> int:
        """INT8 MACs."""
        return self.int8_gemm + self.int8_depthwise

    @property
    def comparisons(self) -> int:
        """Of the quantization phase."""
        return self.rounded

    @property
    def multiply_adds(self) -> int:
        """Float multiply-adds of the quantization phase."""
        return self.rounded + self.rescaled


class _Walked(NamedTuple):
    """A layer, in elements of one sample.

    Args:
        kind: `gemm`, `depthwise`, or `float32` where it is no integer product.
        macs: Of its forward product.
        weights: Elements of its weight matrix.
        inputs: Elements of its input.
        outputs: Elements of its output.
        outermost: Whether its input is the unit's own.
        gated: Elements of a gate's output, which are rounded anew; 0 for any other layer.
    """

    kind: str
    macs: int
    weights: int
    inputs: int
    outputs: int
    outermost: bool
    gated: int = 0

    def product(self, batch: int) -> Counts:
        """The MACs of one of its three products."""
        macs = self.macs * batch
        return Counts(
            int8_gemm=macs if self.kind == "gemm" else 0,
            int8_depthwise=macs if self.kind == "depthwise" else 0,
            float32=macs if self.kind == "float32" else 0,
        )

    @property
    def integer(self) -> bool:
        """Whether its operands are int8."""
        return self.kind != "float32"


def count_backprop(spec: ModelSpec, method: str, batch: int) -> Counts:
    """One step of back-propagation.

    Args:
        spec: The network; a linear head on its last activity is added, as the baselines have it.
        method: One of `benchmarks.backprop.method.BACKPROP_NAMES`.
        batch: Samples.
    """
    features = math.prod(pooled_shape(spec.units[-1].output_shape))
    head = _dense(features, spec.max_classes)
    total = Counts()
    for index, layers in enumerate([*map(_layers, spec.units), [head]]):
        for layer in layers:
            carried = index > 0 or not layer.outermost
            if method in _FLOAT or not layer.integer:
                product = layer._replace(kind="float32").product(batch)
                again = method == _RECOMPUTED and layer is not head
                total += _times(product, 2 + carried + again)
            else:
                total += _int8_backprop(layer, method, batch, carried)
    return total


def _int8_backprop(layer: _Walked, method: str, batch: int, carried: bool) -> Counts:
    """One layer: input and weight are rounded, then the error at its output."""
    parts = 2 if method == "bp-gdai8-like" else 1
    products = 1 + parts * (1 + carried)
    # Where the weight has one scale, both gradients take the same codes.
    roundings = parts if method in _SHARED_CODES else 1 + carried
    weights = layer.weights * (2 if method == "bp-int8-codes" else 1)
    return _times(layer.product(batch), products) + Counts(
        rounded=batch * layer.inputs + weights + roundings * batch * layer.outputs,
        rescaled=batch * layer.outputs
        + parts * (layer.weights + (batch * layer.inputs if carried else 0)),
    )


def count_forward_forward(
    spec: ModelSpec, batch: int, look_ahead: LookAhead, weight: float
) -> Counts:
    """One step of Forward-Forward with float32 masters, of one pass or two.

    Under the paper's objective every sample is shown twice, with its label and with a wrong one.

    Args:
        spec: The network; its objective says how many passes.
        batch: Samples.
        look_ahead: Whose losses count.
        weight: lambda.
    """
    units = [_layers(unit) for unit in spec.units]
    total = Counts(rounded=batch * spec.features)
    if spec.label_places:
        batch *= 2  # codes of the samples are made once
        total += Counts(rounded=1)  # what a label's place holds
    for unit, layers in zip(spec.units, units, strict=True):
        total += _forward(unit, layers, batch)
        if not spec.label_places:
            # Goodness, and its gradient at the head's weights.
            total += _times(_head(unit, spec.max_classes, batch), 2)

    def own_error(unit: int) -> torch.Tensor:
        nonlocal total
        if not spec.label_places:
            total += _head(spec.units[unit], spec.max_classes, batch)
        return torch.zeros(())

    def backward(
        unit: int, error: torch.Tensor, /, *, update: bool, propagate: bool
    ) -> torch.Tensor | None:
        nonlocal total
        for layer in units[unit]:
            total += _backward(layer, batch, update, propagate or not layer.outermost)
        return error if propagate else None

    chain: Chain[torch.Tensor] = Chain(
        len(units),
        own_error=own_error,
        error=lambda unit, passed, weight: own_error(unit),
        later_error=lambda unit, passed: passed,
        copied=lambda passed: passed,
        backward=backward,
    )
    step = look_ahead.step(chain, weight)
    for index in range(len(units)):
        step.after_forward(index)
    step.finish()
    return total


def _forward(unit: UnitSpec, layers: list[_Walked], batch: int) -> Counts:
    """Codes of every layer's output, of a gated activity and of a sum."""
    total = Counts()
    for layer in layers:
        total += layer.product(batch)
        if layer.integer:
            total += Counts(rounded=batch * layer.outputs, rescaled=batch * layer.outputs)
        total += Counts(rounded=batch * layer.gated)
    return total + Counts(rounded=batch * math.prod(unit.output_shape) if unit.adds else 0)


def _backward(layer: _Walked, batch: int, update: bool, propagate: bool) -> Counts:
    """The gradients of one layer that are asked for; its weights are rounded after each step."""
    total = _times(layer.product(batch), update + propagate)
    if not layer.integer:
        return total
    rounded = (update + propagate) * batch * layer.outputs + update * layer.weights
    rescaled = update * layer.weights + propagate * batch * layer.inputs
    return total + Counts(rounded=rounded, rescaled=rescaled)


def _head(unit: UnitSpec, classes: int, batch: int) -> Counts:
    """One product of a linear head. Groups have none."""
    if isinstance(unit, DenseUnitSpec):
        return Counts()
    return Counts(float32=batch * classes * math.prod(pooled_shape(unit.output_shape)))


def _layers(unit: UnitSpec) -> list[_Walked]:
    """The layers of a unit, in order of computation."""
    walked = []
    for place, (name, part) in enumerate(unit.parts.items()):
        if isinstance(part, ConvLayer):
            outermost = place == 0 or (isinstance(unit, ResidualUnitSpec) and name == "shortcut")
            walked.append(_conv(part, outermost))
        elif isinstance(part, SqueezeExciteSpec):
            walked.append(_gate(part, walked[-1].outputs))
        else:
            walked.append(_dense(part.inputs, part.outputs))
    return walked


def _dense(inputs: int, outputs: int) -> _Walked:
    return _Walked("gemm", inputs * outputs, inputs * outputs, inputs, outputs, True)


def _conv(layer: ConvLayer, outermost: bool) -> _Walked:
    return _Walked(
        "depthwise" if layer.depthwise else "gemm",
        layer.macs,
        math.prod(layer.weight_shape),
        math.prod(layer.input_shape),
        math.prod(layer.output_shape),
        outermost,
    )


def _gate(gate: SqueezeExciteSpec, gated: int) -> _Walked:
    return _Walked("float32", gate.macs, gate.macs, gate.channels, gate.channels, False, gated)


def _times(counts: Counts, factor: int) -> Counts:
    return Counts(*(factor * value for value in dataclasses.astuple(counts)))
