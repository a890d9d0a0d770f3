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

from benchmarks.backprop.gradient import GradientQuantizer
from benchmarks.backprop.products import ConvProduct, DepthwiseProduct, LinearProduct, Product
from engines.im2col import ConvGeometry, ConvScratch
from engines.int8 import absmax_scale, quantize


class QuantizedProduct(torch.autograd.Function):
    """One product layer, forward and both gradients in integers.

    Between the passes it keeps the int8 codes of input and weight, and their scales.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no public type
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        product: Product,
        quantizer: GradientQuantizer,
    ) -> Tensor:
        """Output, float32 `[..., O]`.

        Args:
            ctx: Kept for `backward`.
            x: float32 input, as `product` takes it.
            weight: float32 `[O, K]`.
            weight_scale: float32 `[O, 1]` or `[]`.
            product: The integer arithmetic.
            quantizer: Asked in `backward`.
        """
        a = quantize(x, absmax_scale(x))
        w = quantize(weight, weight_scale)
        ctx.save_for_backward(*a, *w)
        ctx.product, ctx.quantizer = product, quantizer
        return product.forward(a.codes, w.codes) * (a.scale * weight_scale.reshape(-1))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        *grad_outputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Gradients at input and weight, float32 of their shapes."""
        (g,) = grad_outputs
        product: Product = ctx.product
        a_codes, a_scale, w_codes, w_scale = ctx.saved_tensors
        codes = ctx.quantizer.quantize(
            product.grouped(g),
            w_scale.flatten() if w_scale.ndim else w_scale,
            want_input=ctx.needs_input_grad[0],
            sums_channels=product.sums_channels,
        )
        grad_weight = _sum(
            product.grad_weight(e.codes.reshape(g.shape), a_codes)
            * (e.scale.reshape(-1, 1) * a_scale)
            for e in codes.for_weight
        )
        grad_input = None
        if codes.for_input:
            grad_input = _sum(
                product.grad_input(e.codes.reshape(g.shape), w_codes)
                * (product.per_input(e.scale) if e.scale.ndim else e.scale)
                for e in codes.for_input
            )
        return grad_input, grad_weight, None, None, None


def _sum(terms: Iterator[Tensor]) -> Tensor:
    """Sum of the parts of a gradient, one of them alive beside it."""
    total = next(terms)
    for term in terms:
        total += term
    return total


class Int8Layer(nn.Module, ABC):
    """A layer whose products are integers, around the float layer's own parameters.

    Args:
        layer: The float layer.
        quantizer: Its gradient's.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, quantizer: GradientQuantizer) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.quantizer = quantizer
        self._fixed_scale: Tensor | None = None

    def apply_product(self, x: Tensor, matrix: Tensor, product: Product) -> Tensor:
        """`x W^T`, float32 `[..., O]`, with the weight as a matrix `[O, K]`."""
        scale = self._fixed_scale
        if scale is None:
            dim = 1 if self.quantizer.per_channel_weights else None
            scale = absmax_scale(matrix.detach(), dim)
        y: Tensor = QuantizedProduct.apply(  # type: ignore[no-untyped-call]
            x, matrix, scale, product, self.quantizer
        )
        return y

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

    def __init__(self, layer: nn.Linear, quantizer: GradientQuantizer) -> None:
        super().__init__(layer, quantizer)
        self._product = LinearProduct()

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in] -> [batch, out]`."""
        y = self.apply_product(x, self.weight, self._product)
        return y if self.bias is None else y + self.bias


class Int8Conv(Int8Layer):
    """A convolution with its products in integers; depthwise where every channel is a group.

    Args:
        layer: The float layer: no bias, a square window, zeros around.
        quantizer: Its gradient's.
        scratch: Memory that every call uses again.

    Raises:
        ValueError: The layer has groups of several channels.
    """

    def __init__(
        self, layer: nn.Conv2d, quantizer: GradientQuantizer, scratch: ConvScratch
    ) -> None:
        super().__init__(layer, quantizer)
        self._depthwise = layer.groups > 1
        if self._depthwise and not layer.groups == layer.in_channels == layer.out_channels:
            raise ValueError(f"no INT8 twin for {layer}: every channel must be a group, or none")
        self._kernel, self._stride = layer.kernel_size[0], layer.stride[0]
        self._channels = layer.in_channels, layer.out_channels
        self._scratch = scratch

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`, best with the channels last in memory."""
        geometry = ConvGeometry(
            self._kernel, self._stride, self._kernel // 2, (x.shape[2], x.shape[3]), *self._channels
        )
        product: Product = (
            DepthwiseProduct(geometry) if self._depthwise else ConvProduct(geometry, self._scratch)
        )
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # [O, k*k*C], tap after tap
        y = self.apply_product(x.permute(0, 2, 3, 1), matrix, product)
        return y.permute(0, 3, 1, 2)


def convert_to_int8(
    network: nn.Module,
    new_quantizer: Callable[[], GradientQuantizer],
    keep_float: tuple[type[nn.Module], ...] = (),
) -> list[Int8Layer]:
    """Swap every linear layer and convolution of `network` for its INT8 twin, in place.

    Args:
        network: Plain float network.
        new_quantizer: Called once a layer.
        keep_float: Modules that are left alone with all that is in them.

    Returns:
        The twins, in the order of the network's modules.
    """
    scratch = ConvScratch()
    twins: list[Int8Layer] = []

    def walk(parent: nn.Module) -> None:
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear):
                twins.append(Int8Linear(module, new_quantizer()))
                setattr(parent, name, twins[-1])
            elif isinstance(module, nn.Conv2d):
                twins.append(Int8Conv(module, new_quantizer(), scratch))
                setattr(parent, name, twins[-1])
            elif not isinstance(module, keep_float):
                walk(module)

    walk(network)
    return twins
