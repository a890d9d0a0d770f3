"""A dense unit as the engines run it: INT8 (or FP32) products around a float32 master.

Activity `y = relu(A W^T + b)`. An error arrives at `y`; the ReLU lets it through where `y > 0`, as
far as the int8 code of `y` still says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from engines.int8 import QTensor
from engines.optim import AdamMasters
from engines.precision import Precision
from engines.rounding import NoiseKey
from models.mlp import DenseUnit


def dense_activity(precision: Precision, a: QTensor, w: QTensor, bias: Tensor) -> Tensor:
    """`relu(A W^T + b)`: float32 `[batch, out]`."""
    return precision.linear(a, w).add_(bias).relu_()


def lower(unit: nn.Module, precision: Precision) -> DenseTrainUnit:
    """The executor that trains a plain float unit.

    Raises:
        TypeError: No executor is known for this kind of unit.
    """
    if isinstance(unit, DenseUnit):
        return DenseTrainUnit(unit, precision)
    raise TypeError(f"no training executor for unit {type(unit).__name__}")


class DenseTrainUnit:
    """Weights, codes and optimizer of one dense unit.

    Args:
        unit: The plain float unit that gives the first weights.
        precision: Arithmetic of the three products.
    """

    def __init__(self, unit: DenseUnit, precision: Precision) -> None:
        self._precision = precision
        self._masters = AdamMasters({"weight": unit.linear.weight, "bias": unit.linear.bias})
        self._quantize_weight()

    def _quantize_weight(self) -> None:
        self.weight = self._precision.weight(self._masters.tensors["weight"])

    @property
    def bias(self) -> Tensor:
        """float32 `[out]`."""
        return self._masters.tensors["bias"]

    def forward(self, a: QTensor) -> Tensor:
        """Activity, float32 `[batch, out]`, of the quantized input `[batch, in]`."""
        return dense_activity(self._precision, a, self.weight, self.bias)

    def grad_input(self, error: Tensor, key: NoiseKey) -> Tensor:
        """Gradient at the input, float32 `[batch, in]`, of `error` at the pre-activation."""
        return self._precision.grad_input(error, self.weight, key)

    def update(self, error: Tensor, a: QTensor, key: NoiseKey, learning_rate: float) -> None:
        """One optimizer step on the masters, then new codes.

        Args:
            error: At the pre-activation, float32 `[batch, out]`.
            a: The input of the forward pass, `[batch, in]`.
            key: Rounding noise of the error.
            learning_rate: Step size.
        """
        gradients = {
            "weight": self._precision.grad_weight(error, a, key),
            "bias": error.sum(dim=0),
        }
        self._masters.step(gradients, learning_rate)
        self._quantize_weight()

    def state(self) -> dict[str, Tensor]:
        """Masters and optimizer state; not copied."""
        return self._masters.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave, and make the codes again."""
        self._masters.load_state(state)
        self._quantize_weight()
