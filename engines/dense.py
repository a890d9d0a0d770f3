"""A dense unit as the engines run it.

    y = relu(A W^T + b)          activity; its goodness is read from it
    z = y / n                    n: root mean square of each row; z is what the next unit gets

Kept between forward and backward: the input's codes (the unit before keeps the same ones), z's
codes and n. The activity that an own error is computed from is `n * dequantize(z)`, so no float
copy of it is stored, and the ReLU lets an error through where z's code is above zero.

A gradient at z becomes one at y by the Jacobian of length normalisation,
`J^T u = (u - z mean(u z)) / n` (Hinton 2022, arXiv 2212.13345v1, section 2, has the normalisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engines.feature import Feature
from engines.fusion import Fusion, stored
from engines.int8 import QTensor, check_contraction
from engines.masters import Masters
from engines.precision import Accumulated, Precision, Terms, sum_of
from engines.rounding import Noise, draws, noise
from engines.serving_scale import ServingScale
from engines.unit import Gradients, Step, TrainUnit
from models.base import length_of
from models.layers import LENGTH_EPSILON


class DenseKept(NamedTuple):
    """A dense unit's activity, kept as direction and length.

    Args:
        output: z, `[B, out]`.
        length: n, float32 `[B, 1]`.
    """

    output: Feature
    length: Tensor

    def activity(self, precision: Precision) -> Tensor:
        """`n z`, float32 `[B, out]`."""
        return self.output.codes * (self.output.scale * self.length)

    def error_at_activity(self, later: Terms) -> Tensor:
        """See `engines.unit.Kept.error_at_activity`: back through the length normalisation."""
        u = sum_of(later)
        z = self.output.codes * self.output.scale
        along = stored((u * z).mean(dim=1, keepdim=True))
        return (u - z * along) * stored(self.length.reciprocal())


class DenseTrainUnit(TrainUnit):
    """A dense layer that learns.

    Args:
        index: Its place in the network, for the rounding noise.
        masters: Of the weights.
        bias: float32 `[out]`; moved by whoever gets the gradient.
        gradients: Where the bias' gradient goes, under `name`.
        name: Of the bias.
        precision: Arithmetic.
        fusion: Fuses the chains.
    """

    def __init__(
        self,
        index: int,
        masters: Masters,
        bias: Tensor,
        gradients: Gradients,
        name: str,
        precision: Precision,
        fusion: Fusion,
    ) -> None:
        self._index = index
        self._masters = masters
        self._bias = bias
        self._gradients = gradients
        self._name = name
        self._precision = precision
        self._input_scale = ServingScale(bias.device)
        self._forward_chain = fusion.fuse(forward)
        self._backward_chain = fusion.fuse(backward)
        self._input: Feature | None = None
        self._kept: DenseKept | None = None

    def forward(self, a: Feature) -> Feature:
        """See `TrainUnit.forward`."""
        # Of the weight gradient: here, since a compiled chain can raise no error of its own.
        check_contraction(len(a.codes))
        self._input_scale.follow(a.scale)
        codes, scale, length = self._forward_chain(
            self._precision, a, self._masters.weight, self._bias
        )
        self._input, self._kept = a, DenseKept(Feature(codes, scale), length)
        return self._kept.output

    @property
    def kept(self) -> DenseKept:
        """See `TrainUnit.kept`."""
        if self._kept is None:
            raise RuntimeError("the unit has kept nothing: forward comes first")
        return self._kept

    def backward(self, error: Tensor, step: Step, *, update: bool, propagate: bool) -> Terms | None:
        """See `TrainUnit.backward`."""
        output = self.kept.output
        assert self._input is not None  # noqa: S101 - kept with the output
        gradient, bias, passed = self._backward_chain(
            self._precision,
            error,
            self._input,
            output.codes,
            self._masters.weight,
            noise(len(error), error.shape[1], step.key(self._index, 0, 0), error.device),
            update,
            propagate,
        )
        if gradient is not None and bias is not None:
            self._masters.step(gradient, step.key(self._index, 0, 1), step.learning_rate)
            self._gradients[self._name] = bias
            self._input = self._kept = None
        return None if passed is None else (passed,)

    def state(self) -> dict[str, Tensor]:
        """See `TrainUnit.state`."""
        masters = {f"weight.{name}": value for name, value in self._masters.state().items()}
        return masters | {"input_scale": self._input_scale.value}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TrainUnit.load_state`."""
        prefix = "weight."
        self._masters.load_state(
            {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        )
        self._input_scale.load(state["input_scale"])

    def export(self) -> dict[str, Tensor]:
        """See `TrainUnit.export`."""
        weight = self._masters.weight
        return {
            "weight.codes": weight.codes,
            "weight.scale": weight.scale,
            "bias": self._bias,
            "input_scale": self._input_scale.exported,
        }


def dense_activity(product: Accumulated, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """`relu(A W^T + b)`: float32 `[B, out]`.

    Args:
        product: `[B, out]`, with the input's scale.
        weight_scale: float32 `[out, 1]`.
        bias: float32 `[out]`.
    """
    return (product.values * stored(product.scale * weight_scale.t()) + bias).relu()


def direction(rows: Tensor) -> Tensor:
    """Rows with a root mean square of 1, as a served network divides them: float32 `[B, N]`.

    Their squares are added in float64, where no order of the sum moves the float32 that it ends
    as; an exported model, which has no float64, comes to the same (`onnx_units`). The root is of a
    float64 as well: torch's of a float32 is not always the nearest one.
    """
    squares = rows.square().sum(dim=1, keepdim=True, dtype=torch.float64).float()
    return rows / (squares / rows.shape[1] + LENGTH_EPSILON).double().sqrt().float()


def forward(
    precision: Precision, a: Feature, weight: QTensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the direction, their scale, and the length, of the input's codes."""
    # [B, in] @ [in, out] -> [B, out], int32
    product = Accumulated(precision.linear(a.codes, weight.codes), a.scale)
    y = dense_activity(product, weight.scale, bias)
    length = length_of(y)
    per_length = stored(length.reciprocal())
    # Of y, in the pass that the length takes: z itself is never stored.
    scale = precision.scale((y.amax(dim=1, keepdim=True) * per_length).amax())
    return precision.round(y * per_length * stored(scale.reciprocal())), scale, length


def backward(
    precision: Precision,
    error: Tensor,
    a: Feature,
    output_codes: Tensor,
    weight: QTensor,
    randomness: Noise,
    update: bool,
    propagate: bool,
) -> tuple[Accumulated | None, Tensor | None, Accumulated | None]:
    """Gradients at weights and bias where `update`, at the input where `propagate`.

    The error behind the ReLU is rounded once for each product that takes it.
    """
    # As float32: compilers vectorise that comparison, and not the one of int8.
    error = torch.where(output_codes.to(torch.float32) > 0, error, 0.0)
    u1, u2 = draws(randomness.words())
    gradient = bias = passed = None
    if update:
        scale = precision.scale(error.abs().amax(dim=0, keepdim=True))
        codes = precision.round(error * stored(scale.reciprocal()), u1)
        # [out, B] @ [B, in] -> [out, in], int32
        values = precision.linear_grad_weight(codes, a.codes)
        gradient = Accumulated(values, scale.t() * a.scale)
        bias = error.sum(dim=0)
    if propagate:
        folded = error * weight.scale.t()
        scale = precision.scale(folded.abs().amax(dim=1, keepdim=True))
        codes = precision.round(folded * stored(scale.reciprocal()), u2)
        # [B, out] @ [out, in] -> [B, in], int32
        passed = Accumulated(precision.linear_grad_input(codes, weight.codes), scale)
    return gradient, bias, passed
