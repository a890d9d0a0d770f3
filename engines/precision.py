"""The arithmetic of a run: INT8, or FP32 as its twin.

With input `A`, weights `W` and the error `E` at a layer's pre-activation, a dense layer has three
products, and a convolution the same three over its windows (engines/conv_products.py):

    forward         A W^T    [batch, in] @ [in, out]    -> [batch, out]
    weight gradient E^T A    [out, batch] @ [batch, in] -> [out, in]
    input gradient  E W      [batch, out] @ [out, in]   -> [batch, in]

A scale may not vary along the axis that is summed over. So A has one scale (its buffer serves the
forward product and the weight gradient), W one per output channel, E one per output channel for
the weight gradient, and one per sample for the input gradient with W's scales folded in before
rounding: `E W = s_row * (Q_row(E * s_W) @ W_q)`. The same float error is therefore rounded twice.

A product gives its accumulator; whoever asked for it knows the scales. FP32 has the same interface,
its codes are the values, its scales 1, and nothing is rounded: run with it, the trainer must match
torch's autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from engines.int8 import int8_matmul, quantize, round_steps, scale_of


class Accumulated(NamedTuple):
    """A product before its scales: `values * scale` is what it stands for.

    Args:
        values: int32 (FP32: float32).
        scale: float32 that broadcasts against `values`.
    """

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 of the shape of `values`."""
        return self.values * self.scale


# A gradient as the terms that it is the sum of: whoever reads it adds them up as it goes.
Terms = tuple[Accumulated, ...]


def whole(x: Tensor) -> Accumulated:
    """float32 `x` as a product that has no scale of its own."""
    return Accumulated(x, x.new_ones(()))


def sum_of(terms: Terms) -> Tensor:
    """What the terms, one at least, add up to; float32."""
    first, *others = terms
    total = first.dequantize()
    for term in others:
        total = total + term.dequantize()
    return total


def copied(terms: Terms) -> Terms:
    """The same, as one term in memory of its own."""
    first, *others = terms
    # In place: a product of an integer and a float would make a float of the integer besides.
    total = first.values.to(torch.float32, copy=True).mul_(first.scale)
    for term in others:
        total += term.dequantize()
    return (whole(total),)


class Precision(ABC):
    """The arithmetic of one training or prediction run; it has no state."""

    name: str

    @abstractmethod
    def scale(self, absmax: Tensor) -> Tensor:
        """What one code is worth where `absmax`, float32, is the largest magnitude."""

    @abstractmethod
    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes of `x` in memory of their own, to the nearest; clipped beyond 127 scales."""

    @abstractmethod
    def round(self, steps: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes of `steps`, already divided by the scale that was made for them.

        To the nearest or, with draws for noise, stochastically.
        """

    @abstractmethod
    def linear(self, a: Tensor, w: Tensor) -> Tensor:
        """`A W^T`: `[batch, in]`, `[out, in]` -> accumulator `[batch, out]`."""

    @abstractmethod
    def linear_grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """`E^T A`: `[batch, out]`, `[batch, in]` -> accumulator `[out, in]`."""

    @abstractmethod
    def linear_grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """`E W`: `[batch, out]`, `[out, in]` -> accumulator `[batch, in]`."""


class Int8(Precision):
    """int8 operands, int32 accumulators in every product."""

    name = "int8"

    def scale(self, absmax: Tensor) -> Tensor:
        """See `Precision.scale`."""
        return scale_of(absmax)

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """See `Precision.quantize`."""
        return quantize(x, scale).codes

    def round(self, steps: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Precision.round`."""
        return round_steps(steps, noise).to(torch.int8)

    def linear(self, a: Tensor, w: Tensor) -> Tensor:
        """See `Precision.linear`."""
        return int8_matmul(a, w.t())

    def linear_grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """See `Precision.linear_grad_weight`."""
        return int8_matmul(e.t(), a)

    def linear_grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """See `Precision.linear_grad_input`."""
        return int8_matmul(e, w)


class Fp32(Precision):
    """The float twin: codes are the values, scales are 1, nothing is rounded."""

    name = "fp32"

    def scale(self, absmax: Tensor) -> Tensor:
        """See `Precision.scale`."""
        return torch.ones_like(absmax)

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """See `Precision.quantize`."""
        # A master is moved in place, and an error goes back through the weights of before.
        return x.clone()

    def round(self, steps: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Precision.round`."""
        return steps

    def linear(self, a: Tensor, w: Tensor) -> Tensor:
        """See `Precision.linear`."""
        return a @ w.t()

    def linear_grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """See `Precision.linear_grad_weight`."""
        return e.t() @ a

    def linear_grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """See `Precision.linear_grad_input`."""
        return e @ w


PRECISIONS: dict[str, Precision] = {p.name: p for p in (Int8(), Fp32())}
