"""The integer products of one layer: forward, weight gradient and input gradient.

All take int8 codes and give int32 accumulators; scales are no business of this file. Activities of
convolutions are `[B, H, W, C]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from engines.conv import conv_forward, conv_grad_input, conv_grad_weight
from engines.depthwise import DepthwiseConv
from engines.fusion import Fusion
from engines.im2col import ConvScratch
from engines.int8 import int8_matmul
from models.layers import ConvLayer


class Product(ABC):
    """One layer's sums of products. `a` is its input, `w` its weight matrix, `e` an error."""

    # Whether an input's gradient sums over all output channels.
    sums_channels: bool

    @abstractmethod
    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """Output, int32 `[..., O]`."""

    @abstractmethod
    def grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """Weight gradient, int32 of the shape of `w`, from `e` int8 of the output's shape."""

    @abstractmethod
    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """Input gradient, int32 of the shape of `a`, from `e` int8 of the output's shape."""

    @abstractmethod
    def grouped(self, g: Tensor) -> Tensor:
        """An output gradient as `[G, R, O]`: the rows of a group reach the same inputs."""

    @abstractmethod
    def per_input(self, scale: Tensor) -> Tensor:
        """Scales `[G or 1, 1, O or 1]` of a grouped gradient, to broadcast against `grad_input`."""


class LinearProduct(Product):
    """`Y = A W^T` with `A` `[batch, in]` and `W` `[out, in]`."""

    sums_channels = True

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """See `Product.forward`."""
        return int8_matmul(a, w.t())  # [batch, in] @ [in, out]

    def grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """See `Product.grad_weight`."""
        return int8_matmul(e.t(), a)  # [out, batch] @ [batch, in]

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """See `Product.grad_input`."""
        return int8_matmul(e, w)  # [batch, out] @ [out, in]

    def grouped(self, g: Tensor) -> Tensor:
        """See `Product.grouped`; every row is a group."""
        return g[:, None, :]

    def per_input(self, scale: Tensor) -> Tensor:
        """See `Product.per_input`."""
        return scale[:, 0, :]


class ConvProduct(Product):
    """A k x k convolution of `[B, H, W, C]` codes with a weight matrix `[O, k*k*C]`.

    Args:
        layer: Its sizes.
        scratch: Memory that every call uses again.
    """

    sums_channels = True

    def __init__(self, layer: ConvLayer, scratch: ConvScratch) -> None:
        self._layer = layer
        self._scratch = scratch
        # Windows of one pixel, one for each: then an output pixel is the gradient of one input.
        self._pixels = (layer.kernel, layer.stride) == (1, 1)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """See `Product.forward`."""
        sums = conv_forward(a, w, self._layer, scratch=self._scratch)
        return sums.view(len(a), *self._layer.out_size, len(w))

    def grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """See `Product.grad_weight`; int64 where an int32 could overflow."""
        return conv_grad_weight(e.flatten(0, 2), a, self._layer, scratch=self._scratch)

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """See `Product.grad_input`."""
        return conv_grad_input(e, w, self._layer, scratch=self._scratch)

    def grouped(self, g: Tensor) -> Tensor:
        """See `Product.grouped`; a group is a sample; for 1x1 windows on every pixel, a pixel."""
        return g.flatten(0, 2)[:, None] if self._pixels else g.flatten(1, 2)

    def per_input(self, scale: Tensor) -> Tensor:
        """See `Product.per_input`."""
        size = self._layer.in_size if self._pixels and len(scale) > 1 else (1, 1)
        return scale.view(-1, *size, scale.shape[-1])


class DepthwiseProduct(Product):
    """A convolution of each channel of `[B, H, W, C]` codes with its own kernel, `[C, k*k]`.

    Args:
        layer: Its sizes.
        fusion: Fuses its loops.
    """

    sums_channels = False

    def __init__(self, layer: ConvLayer, fusion: Fusion) -> None:
        self._conv = DepthwiseConv(layer, fusion)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """See `Product.forward`."""
        return self._conv.forward(a, w)

    def grad_weight(self, e: Tensor, a: Tensor) -> Tensor:
        """See `Product.grad_weight`."""
        return self._conv.grad_weight(e, a)

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """See `Product.grad_input`."""
        return self._conv.grad_input(e, w)

    def grouped(self, g: Tensor) -> Tensor:
        """See `Product.grouped`; a group is a sample."""
        return g.flatten(1, 2)

    def per_input(self, scale: Tensor) -> Tensor:
        """See `Product.per_input`."""
        return scale[:, :, None, :]
