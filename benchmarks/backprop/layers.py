"""INT8 twins of torch's layers, and the walk that swaps them in.

As torchao's `quantize_` and nanochat's fp8 conversion do it, precision comes from outside: the
network is built in plain float and knows nothing of it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.backprop.gradient import GradientQuantizer, Rounding
from benchmarks.backprop.products import ConvProduct, DepthwiseProduct, LinearProduct, Product
from engines.im2col import ConvScratch
from engines.int8 import QTensor, absmax_scale, quantize
from models.layers import ConvLayer


class QuantizedProduct(torch.autograd.Function):
    """One product layer, forward and both gradients in integers.

    Between the passes it keeps the int8 codes of input and weight, and their scales.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no public type
        x: Tensor,
        weight: Tensor,
        product: Product,
        layer: Int8Layer,
    ) -> Tensor:
        """Output, float32 `[..., O]`.

        Args:
            ctx: Kept for `backward`.
            x: float32 input, as `product` takes it.
            weight: float32 `[O, K]`.
            product: The integer arithmetic.
            layer: Quantizes.
        """
        # No business of `masked_relus`, and compilers do not look through such a mode.
        with torch._C.DisableTorchFunction():
            a, w = layer.quantize_input(x.detach()), layer.quantize_weight(weight.detach())
            ctx.save_for_backward(*a, *w)
            ctx.product, ctx.layer = product, layer
            return layer.scaled(product.forward(a.codes, w.codes), a.scale * w.scale.reshape(-1))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        *grad_outputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Gradients at input and weight, float32 of their shapes."""
        (g,) = grad_outputs
        product: Product = ctx.product
        layer: Int8Layer = ctx.layer
        a_codes, a_scale, w_codes, w_scale = ctx.saved_tensors
        codes = layer.quantizer.quantize(
            product.grouped(g),
            w_scale.flatten() if w_scale.ndim else w_scale,
            want_input=ctx.needs_input_grad[0],
            sums_channels=product.sums_channels,
        )
        grad_weight = _sum(
            layer.scaled(
                product.grad_weight(e.codes.reshape(g.shape), a_codes),
                e.scale.reshape(-1, 1) * a_scale,
            )
            for e in codes.for_weight
        )
        grad_input = None
        if codes.for_input:
            grad_input = _sum(
                layer.scaled(
                    product.grad_input(e.codes.reshape(g.shape), w_codes),
                    product.per_input(e.scale) if e.scale.ndim else e.scale,
                )
                for e in codes.for_input
            )
        return grad_input, grad_weight, None, None


def _sum(terms: Iterator[Tensor]) -> Tensor:
    """Sum of the parts of a gradient, one of them alive beside it."""
    total = next(terms)
    for term in terms:
        total += term
    return total


def _quantize(x: Tensor, dim: int | None) -> QTensor:
    return quantize(x, absmax_scale(x, dim))


def _scaled(sums: Tensor, scale: Tensor) -> Tensor:
    return sums * scale


class Int8Layer(nn.Module, ABC):
    """A layer whose products are integers, around the float layer's own parameters.

    Args:
        layer: The float layer.
        quantizer: Its gradient's.
        rounding: How its chains run.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, quantizer: GradientQuantizer, rounding: Rounding
    ) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.quantizer = quantizer
        self._fixed_scale: Tensor | None = None
        self._quantize_input = rounding.fuse(_quantize)
        self._quantize_weight = rounding.fuse(_quantize)
        self.scaled = rounding.fuse(_scaled)

    def quantize_input(self, x: Tensor) -> QTensor:
        """Codes of the input, one scale `[]`."""
        return self._quantize_input(x, None)

    def quantize_weight(self, matrix: Tensor) -> QTensor:
        """Codes of the weight matrix `[O, K]`, scales `[O, 1]` or `[]`."""
        if self._fixed_scale is not None:
            return quantize(matrix, self._fixed_scale)
        return self._quantize_weight(matrix, 1 if self.quantizer.per_channel_weights else None)

    @torch.no_grad()
    def round_weight(self) -> None:
        """Leave of the weight what int8 codes can hold, under the scale of the first call.

        The float master then holds `codes * scale` exactly, so that learning is that of int8
        weights; only memory is not (a float32 a code).
        """
        if self._fixed_scale is None:
            self._fixed_scale = absmax_scale(self.weight)
        self.weight.copy_(quantize(self.weight, self._fixed_scale).dequantize())


class Int8Linear(Int8Layer):
    """`y = x W^T + b` with its products in integers."""

    def __init__(self, layer: nn.Linear, quantizer: GradientQuantizer, rounding: Rounding) -> None:
        super().__init__(layer, quantizer, rounding)
        self._product = LinearProduct()

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in] -> [batch, out]`."""
        y: Tensor = QuantizedProduct.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self._product, self
        )
        return y if self.bias is None else y + self.bias


class Int8Conv(Int8Layer):
    """A convolution with its products in integers; depthwise where every channel is a group.

    Args:
        layer: The float layer: no bias, a square window, zeros around.
        quantizer: Its gradient's.
        rounding: How its chains run.
        scratch: Memory that every call uses again.

    Raises:
        ValueError: The layer has groups of several channels.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        quantizer: GradientQuantizer,
        rounding: Rounding,
        scratch: ConvScratch,
    ) -> None:
        super().__init__(layer, quantizer, rounding)
        self._depthwise = layer.groups > 1
        if self._depthwise and not layer.groups == layer.in_channels == layer.out_channels:
            raise ValueError(f"no INT8 twin for {layer}: every channel must be a group, or none")
        self._kernel, self._stride = layer.kernel_size[0], layer.stride[0]
        self._channels = layer.in_channels, layer.out_channels
        self._scratch = scratch
        self._fusion = rounding.fusion
        self._products: dict[tuple[int, int], Product] = {}

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`, best with the channels last in memory."""
        size = x.shape[2], x.shape[3]
        product = self._products.get(size) or self._products.setdefault(size, self._product(size))
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # [O, k*k*C], tap after tap
        y: Tensor = QuantizedProduct.apply(  # type: ignore[no-untyped-call]
            x.permute(0, 2, 3, 1), matrix, product, self
        )
        return y.permute(0, 3, 1, 2)

    def _product(self, in_size: tuple[int, int]) -> Product:
        """The integer arithmetic for images of a size."""
        layer = ConvLayer(
            *self._channels, self._kernel, self._stride, self._depthwise, "none", in_size
        )
        if self._depthwise:
            return DepthwiseProduct(layer, self._fusion)
        return ConvProduct(layer, self._scratch)


def convert_to_int8(
    network: nn.Module,
    new_quantizer: Callable[[Rounding], GradientQuantizer],
    rounding: Rounding,
    keep_float: tuple[type[nn.Module], ...] = (),
) -> list[Int8Layer]:
    """Swap every linear layer and convolution of `network` for its INT8 twin, in place.

    Args:
        network: Plain float network.
        new_quantizer: Called once a layer.
        rounding: Given to it and to the layer.
        keep_float: Modules that are left alone with all that is in them.

    Returns:
        The twins, in the order of the network's modules.
    """
    scratch = ConvScratch()
    twins: list[Int8Layer] = []

    def walk(parent: nn.Module) -> None:
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear):
                twins.append(Int8Linear(module, new_quantizer(rounding), rounding))
                setattr(parent, name, twins[-1])
            elif isinstance(module, nn.Conv2d):
                twins.append(Int8Conv(module, new_quantizer(rounding), rounding, scratch))
                setattr(parent, name, twins[-1])
            elif not isinstance(module, keep_float):
                walk(module)

    walk(network)
    return twins
