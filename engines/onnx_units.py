"""Units as ONNX nodes: `engines/predict_units.py` again, in a form that TensorRT reads.

    codes   = QuantizeLinear(steps, 1)          int8; steps: float, divided by the scale and clipped
    sums    = Conv(DequantizeLinear(codes, 1), DequantizeLinear(weight codes, 1))
    z       = sums * (weight scale * input scale) + bias
    steps   = clip(activation(z * (1 / output scale)))

*Every quantization scale is 1*; what was learned as a scale is an ordinary float factor beside it.
TensorRT wants the scales of quantizers as constants of the built engine, and float constants can be
refitted, so a new version of the weights never demands a new build. It also makes the sums in float
those of the integers, exactly below 2^24 (a sum of up to 1040 products of any codes). Factors are
multiplied here, in float32 and in the order of the torch engine, so that they have its bits.

Maps are `[B, C, H, W]`, as ONNX and the samples have them; the engines keep channels last. An
activation is applied before the codes are made where that gives the same codes (rounding is
monotone, and the bounds of a ReLU are codes themselves); SiLU is computed from rounded steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.onnx_graph import Graph
from models.layers import LENGTH_EPSILON, Activation, ConvLayer, SqueezeExciteSpec
from models.spec import CODE_MAX
from models.units import (
    ConvUnitSpec,
    InvertedResidualUnitSpec,
    ResidualUnitSpec,
    UnitSpec,
)

Arrays = Mapping[str, NDArray[np.generic]]


class Steps(NamedTuple):
    """An activity before it is rounded to codes.

    Args:
        value: Float, within +-127 and divided by the scale.
        scale: Which of the weights' arrays the scale is.
    """

    value: str
    scale: str


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of one version of the weights.

    Args:
        graph: Gets the nodes.
        arrays: Named as in `engines.base.expected_arrays`.
    """

    graph: Graph
    arrays: Arrays

    def steps(self, x: str, scale: str, activation: Activation = "none") -> Steps:
        """A float activity in steps of a scale, with the activation function applied.

        Args:
            x: Of the pre-activation.
            scale: Which array.
            activation: The function.
        """
        graph, learned = self.graph, self._float(scale)
        reciprocal = np.reciprocal(learned)
        per_step = graph.learned(f"{scale}.reciprocal", reciprocal)
        x = graph.node("Mul", x, per_step)
        least = 0 if activation in ("relu", "relu6") else -CODE_MAX
        x = graph.node("Clip", x, graph.constant(least), graph.constant(CODE_MAX))
        if activation == "relu6":
            six = np.rint(np.minimum(np.float32(6) * reciprocal, np.float32(CODE_MAX)))
            # Not a bound of the clip: TensorRT would take that for a constant.
            x = graph.node("Min", x, graph.learned(f"{scale}.six", six))
        elif activation == "silu":
            x = graph.node("Round", x)
            negative = graph.learned(f"{scale}.negative", -learned)
            exponential = graph.node("Exp", graph.node("Mul", x, negative))
            x = graph.node("Div", x, graph.node("Add", exponential, graph.constant(1)))
        return Steps(x, scale)

    def codes(self, steps: Steps) -> str:
        """The rounded steps, float again: what products and sums are made of."""
        return self._dequantized(self.int8(steps.value))

    def int8(self, value: str) -> str:
        """Codes of steps, int8."""
        graph = self.graph
        return graph.node("QuantizeLinear", value, graph.constant(1), graph.int8_zero())

    def activity(self, steps: Steps) -> str:
        """The float activity that the codes stand for."""
        scale = self.graph.learned(steps.scale, self.arrays[steps.scale])
        return self.graph.node("Mul", self.codes(steps), scale)

    def dense(self, name: str, a: Steps, labels: int = 0) -> str:
        """Sums of a dense unit, float `[B, out]`.

        Args:
            name: `units.N`.
            a: Its input.
            labels: How many of its last inputs are no part of `a`.
        """
        weight = self._weight(name, self.arrays[f"{name}.weight.codes"], labels)
        return self.graph.node("Gemm", self.codes(a), weight, transB=1)

    def dense_activity(self, name: str, sums: str) -> str:
        """`relu(x W^T + b)`, float `[B, out]`."""
        scale = self._float(f"{name}.input_scale") * self._float(f"{name}.weight.scale")[:, 0]
        return self.graph.node("Relu", self._scaled(name, sums, scale, ()))

    def length_normalized(self, x: str, columns: int) -> str:
        """Rows with a root mean square of 1, `[B, N]`; see `engines.dense.direction`.

        Args:
            x: `[B, N]`.
            columns: N.

        Their squares are added in float32, yet in an order that does not matter: for squares of at
        most t, `(s + m) - m` with `m = 2^k t >= 2 N t` leaves the upper bits of s, whose sum is
        exact, and the same takes the next bits from what is left (Demmel and Nguyen 2013, "Fast
        Reproducible Floating-Point Summation", algorithm 2), until 36 bits below t are in.
        """
        graph, k = self.graph, math.ceil(math.log2(2 * columns))
        bits = 23 - k  # of each square, in one sum
        rest = graph.node("Mul", x, x)
        top = graph.node("ReduceMax", rest, axes=(1,), keepdims=1)
        sums = []
        for level in range(math.ceil(36 / bits)):
            m = graph.node("Mul", top, graph.constant(2.0 ** (k - bits * level)))
            upper = graph.node("Sub", graph.node("Add", rest, m), m)
            sums.append(graph.node("ReduceSum", upper, graph.sizes(1), keepdims=1))
            rest = graph.node("Sub", rest, upper)
        squares = functools.reduce(lambda lower, upper: graph.node("Add", upper, lower), sums[::-1])
        mean = graph.node("Div", squares, graph.constant(columns))
        length = graph.node("Sqrt", graph.node("Add", mean, graph.constant(LENGTH_EPSILON)))
        return graph.node("Div", x, length)

    def conv(self, name: str, layer: ConvLayer, a: Steps, labels: int = 0) -> str:
        """Sums of a convolution, float `[B, O, H', W']`.

        Args:
            name: `units.N.part`.
            layer: The convolution.
            a: Its input.
            labels: How many of its last input channels are no part of `a`.
        """
        k, p = layer.kernel, layer.padding
        kernels = kernels_of(layer, self.arrays[f"{name}.weight.codes"])
        return self.graph.node(
            "Conv",
            self.codes(a),
            self._weight(name, kernels, labels),
            kernel_shape=(k, k),
            strides=(layer.stride, layer.stride),
            pads=(p, p, p, p),
            group=layer.in_channels if layer.depthwise else 1,
        )

    def conv_steps(self, name: str, layer: ConvLayer, sums: str, input_scale: str) -> Steps:
        """What a convolution makes of its sums: norm, activation function, codes."""
        scale = self._float(f"{name}.weight.scale")[:, 0] * self._float(input_scale)
        z = self._scaled(name, sums, scale, (1, 1))
        return self.steps(z, f"{name}.output_scale", layer.activation)

    def unit(self, name: str, spec: UnitSpec, a: Steps) -> Steps:
        """A unit of convolutions.

        Args:
            name: `units.N`.
            spec: The unit.
            a: Its input.

        Raises:
            TypeError: No nodes are known for this kind of unit.
        """
        if isinstance(spec, ConvUnitSpec):
            return self._layer(f"{name}.conv", spec.conv, a)
        if isinstance(spec, ResidualUnitSpec):
            return self._residual(name, spec, a)
        if isinstance(spec, InvertedResidualUnitSpec):
            return self._inverted_residual(name, spec, a)
        raise TypeError(f"no nodes for unit {type(spec).__name__}")

    def _residual(self, name: str, spec: ResidualUnitSpec, a: Steps) -> Steps:
        branch = self._layer(f"{name}.conv1", spec.conv1, a)
        branch = self._layer(f"{name}.conv2", spec.conv2, branch)
        around = a if spec.shortcut is None else self._layer(f"{name}.shortcut", spec.shortcut, a)
        return self._sum(name, branch, around, "relu")

    def _inverted_residual(self, name: str, spec: InvertedResidualUnitSpec, a: Steps) -> Steps:
        inner = a if spec.expand is None else self._layer(f"{name}.expand", spec.expand, a)
        inner = self._layer(f"{name}.depthwise", spec.depthwise, inner)
        if spec.squeeze_excite is not None:
            inner = self._gated(f"{name}.squeeze_excite", spec.squeeze_excite, inner)
        output = self._layer(f"{name}.project", spec.project, inner)
        return self._sum(name, output, a, "none") if spec.skip else output

    def _layer(self, name: str, layer: ConvLayer, a: Steps) -> Steps:
        return self.conv_steps(name, layer, self.conv(name, layer, a), a.scale)

    def _sum(self, name: str, branch: Steps, around: Steps, activation: Activation) -> Steps:
        total = self.graph.node("Add", self.activity(branch), self.activity(around))
        return self.steps(total, f"{name}.sum.output_scale", activation)

    def _gated(self, name: str, spec: SqueezeExciteSpec, a: Steps) -> Steps:
        graph, activity = self.graph, self.activity(a)
        mean = graph.node("ReduceMean", activity, axes=(2, 3), keepdims=0)
        reduced = self.linear(f"{name}.fc1", mean)
        silu = graph.node("Mul", reduced, graph.node("Sigmoid", reduced))
        gate = graph.node("Sigmoid", self.linear(f"{name}.fc2", silu))
        gate = graph.node("Reshape", gate, graph.sizes(0, spec.channels, 1, 1))
        return self.steps(graph.node("Mul", activity, gate), f"{name}.output_scale")

    def linear(self, name: str, x: str) -> str:
        """`x W^T + b` in float32, `[B, out]`."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        for parameter in (weight, bias):
            self.graph.learned(parameter, self.arrays[parameter])
        return self.graph.node("Gemm", x, weight, bias, transB=1)

    def _scaled(
        self, name: str, sums: str, factor: NDArray[np.float32], pixel: tuple[int, ...]
    ) -> str:
        """Sums times a factor a channel, plus the bias."""
        graph, bias = self.graph, self.arrays[f"{name}.bias"]
        scaled = graph.node(
            "Mul", sums, graph.learned(f"{name}.factor", factor.reshape(-1, *pixel))
        )
        return graph.node("Add", scaled, graph.learned(f"{name}.bias", bias.reshape(-1, *pixel)))

    def _weight(self, name: str, codes: NDArray[np.generic], labels: int) -> str:
        """Codes `[out, in, ...]`, of which the last inputs may be left out; float."""
        name = f"{name}.weight.codes"
        if labels:
            name, codes = f"{name}.samples", codes[:, :-labels]
        return self._dequantized(self.graph.learned(name, codes))

    def _dequantized(self, codes: str) -> str:
        return self.graph.node("DequantizeLinear", codes, self.graph.constant(1))

    def _float(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.arrays[name], dtype=np.float32)


def kernels_of(layer: ConvLayer, codes: NDArray[np.generic]) -> NDArray[np.generic]:
    """Weights `[O, k*k*C]`, taps first, as ONNX has them: `[O, C, k, k]`."""
    k = layer.kernel
    return np.moveaxis(codes.reshape(layer.out_channels, k, k, -1), 3, 1)
