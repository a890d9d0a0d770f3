"""How the three matrix products of a dense layer are computed: in INT8, or in FP32 as its twin.

With input `A` `[batch, in]`, weights `W` `[out, in]` and the error `E` `[batch, out]` at the
layer's pre-activation:

    forward         A W^T    [batch, in] @ [in, out]  -> [batch, out]
    weight gradient E^T A    [out, batch] @ [batch, in] -> [out, in]
    input gradient  E W      [batch, out] @ [out, in] -> [batch, in]

A scale may not vary along the axis that is summed over. So A has one scale (its buffer serves the
forward product and the weight gradient), W one per output channel, E one per output channel for
the weight gradient, and one per row for the input gradient with W's scales folded in before
rounding: `E W = s_row * (Q_row(E * s_W) @ W_q)`. The same float error is therefore rounded twice.

FP32 has the same interface and no rounding: run with it, the trainer must match torch's autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from engines.int8 import QTensor, Scratch, absmax_scale, int8_matmul, quantize
from engines.rounding import NoiseKey, uniform


class Precision(ABC):
    """The arithmetic of one training or prediction run."""

    name: str

    @abstractmethod
    def activation(self, x: Tensor, scale: Tensor | None = None) -> QTensor:
        """Layer input, one scale for the tensor: `scale` where given, else from its absmax."""

    @abstractmethod
    def weight(self, master: Tensor) -> QTensor:
        """Weights `[out, in]` from their float32 master, one scale per output: `[out, 1]`."""

    @abstractmethod
    def linear(self, a: QTensor, w: QTensor) -> Tensor:
        """`A W^T`: float32 `[batch, out]`."""

    @abstractmethod
    def grad_weight(self, error: Tensor, a: QTensor, key: NoiseKey) -> Tensor:
        """`E^T A`: float32 `[out, in]` from float32 `error` `[batch, out]`.

        The result is good until this precision's next call: the optimizer uses it at once.
        """

    @abstractmethod
    def grad_input(self, error: Tensor, w: QTensor, key: NoiseKey) -> Tensor:
        """`E W`: float32 `[batch, in]` from float32 `error` `[batch, out]`."""


class Int8(Precision):
    """int8 operands, int32 accumulators in all three products; errors round stochastically."""

    name = "int8"

    def __init__(self) -> None:
        # For what is as large as the weights, in training alone: prediction, which may run in
        # several threads, uses none of it.
        self._integers = Scratch(torch.int32)
        self._floats = Scratch(torch.float32)

    def activation(self, x: Tensor, scale: Tensor | None = None) -> QTensor:
        """See `Precision.activation`."""
        return quantize(x, absmax_scale(x) if scale is None else scale)

    def weight(self, master: Tensor) -> QTensor:
        """See `Precision.weight`."""
        return quantize(master, absmax_scale(master, dim=1), scratch=self._floats)

    def linear(self, a: QTensor, w: QTensor) -> Tensor:
        """See `Precision.linear`."""
        accumulator = int8_matmul(a.codes, w.codes.t())  # [batch, in] @ [in, out], int32
        return accumulator * (a.scale * w.scale.t())

    def grad_weight(self, error: Tensor, a: QTensor, key: NoiseKey) -> Tensor:
        """See `Precision.grad_weight`."""
        e = quantize(error, absmax_scale(error, dim=0), uniform(error.shape, key))
        # [out, batch] @ [batch, in], int32
        accumulator = int8_matmul(e.codes.t(), a.codes, self._integers)
        scale = e.scale.t() * a.scale
        return torch.mul(accumulator, scale, out=self._floats.take(*accumulator.shape))

    def grad_input(self, error: Tensor, w: QTensor, key: NoiseKey) -> Tensor:
        """See `Precision.grad_input`."""
        folded = error * w.scale.t()
        e = quantize(folded, absmax_scale(folded, dim=1), uniform(folded.shape, key))
        accumulator = int8_matmul(e.codes, w.codes)  # [batch, out] @ [out, in], int32
        return accumulator * e.scale


class Fp32(Precision):
    """The float twin: codes are the values, scales are 1, nothing is rounded."""

    name = "fp32"

    def activation(self, x: Tensor, scale: Tensor | None = None) -> QTensor:
        """See `Precision.activation`."""
        return QTensor(x, torch.ones(()))

    def weight(self, master: Tensor) -> QTensor:
        """See `Precision.weight`."""
        return QTensor(master, torch.ones((master.shape[0], 1)))

    def linear(self, a: QTensor, w: QTensor) -> Tensor:
        """See `Precision.linear`."""
        return a.codes @ w.codes.t()

    def grad_weight(self, error: Tensor, a: QTensor, key: NoiseKey) -> Tensor:
        """See `Precision.grad_weight`."""
        return error.t() @ a.codes

    def grad_input(self, error: Tensor, w: QTensor, key: NoiseKey) -> Tensor:
        """See `Precision.grad_input`."""
        return error @ w.codes


PRECISIONS: dict[str, type[Precision]] = {p.name: p for p in (Int8, Fp32)}
