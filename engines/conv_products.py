"""A convolution's three products, dense or depthwise, in the precision of a run.

    forward          [B, H, W, C], weights            -> [B, Ho, Wo, O]
    weight gradient  [B, Ho, Wo, O], [B, H, W, C]     -> the weights' shape
    input gradient   [B, Ho, Wo, O], weights          -> [B, H, W, C]

Accumulators come back without scales: int32 (float32 from the twin).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor
from torch.nn import functional
from torch.nn import grad as float_gradients

from engines.conv import conv_forward, conv_grad_input, conv_grad_weight
from engines.depthwise import DepthwiseConv
from engines.feature import Feature
from engines.fusion import Fusion
from engines.im2col import ConvScratch
from engines.precision import Precision
from models.layers import ConvLayer


class ConvProducts(ABC):
    """The products of one convolution."""

    @abstractmethod
    def forward(self, a: Feature, w: Tensor) -> Tensor:
        """Accumulator `[B, Ho, Wo, O]` of the activity `[B, H, W, C]` and the weights' codes."""

    @abstractmethod
    def grad_weight(self, e: Tensor, a: Feature) -> Tensor:
        """Accumulator of the weights' shape; `e`: codes `[B, Ho, Wo, O]`."""

    @abstractmethod
    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        """Accumulator `[B, H, W, C]`; `e`: codes `[B, Ho, Wo, O]`."""


def conv_products(
    layer: ConvLayer, precision: Precision, fusion: Fusion, scratch: ConvScratch | None
) -> ConvProducts:
    """The products of `layer`.

    Args:
        layer: The convolution.
        precision: INT8 or the float twin.
        fusion: Fuses what is elementwise.
        scratch: Memory that the products of a training step use again, one after the other; None:
            each its own, so that several threads may predict.
    """
    if precision.name != "int8":
        return _FloatConv(layer, precision)
    if layer.depthwise:
        return _DepthwiseConv(layer, precision, fusion)
    return _DenseConv(layer, precision, fusion, scratch)


def _operand(precision: Precision, a: Feature) -> Tensor:
    """Codes of the activity: a copy that lives for one product.

    (Mapping the codes tile by tile while they are gathered saves the copy, and costs more time than
    it saves for anything but a ReLU.)
    """
    return a.operand(precision)


class _Operand:
    """The codes that are multiplied; the kept ones themselves where there is no activation."""

    def __init__(self, precision: Precision, fusion: Fusion) -> None:
        self._precision = precision
        self._map = fusion.fuse(_operand)

    def __call__(self, a: Feature) -> Tensor:
        return a.codes if a.activation == "none" else self._map(self._precision, a)


class _DenseConv(ConvProducts):
    def __init__(
        self, layer: ConvLayer, precision: Precision, fusion: Fusion, scratch: ConvScratch | None
    ) -> None:
        self._layer = layer
        self._operand = _Operand(precision, fusion)
        self._scratch = scratch
        # A single tap sees every so many-th pixel and no other: only those are made an operand.
        self._step = layer.stride if layer.kernel == 1 else 1
        self._seen = layer
        if self._step > 1:
            self._seen = replace(layer, stride=1, in_size=layer.out_size)

    def forward(self, a: Feature, w: Tensor) -> Tensor:
        sums = conv_forward(self._seen_operand(a), w, self._seen, scratch=self._scratch)
        return sums.view(len(a.codes), *self._layer.output_shape)

    def grad_weight(self, e: Tensor, a: Feature) -> Tensor:
        return conv_grad_weight(
            e.flatten(0, 2), self._seen_operand(a), self._seen, scratch=self._scratch
        )

    def _seen_operand(self, a: Feature) -> Tensor:
        if self._step > 1:
            a = a._replace(codes=a.codes[:, :: self._step, :: self._step].contiguous())
        return self._operand(a)

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        return conv_grad_input(e, w, self._layer, scratch=self._scratch)


class _DepthwiseConv(ConvProducts):
    def __init__(self, layer: ConvLayer, precision: Precision, fusion: Fusion) -> None:
        self._operand = _Operand(precision, fusion)
        self._conv = DepthwiseConv(layer, fusion)

    def forward(self, a: Feature, w: Tensor) -> Tensor:
        return self._conv.forward(self._operand(a), w)

    def grad_weight(self, e: Tensor, a: Feature) -> Tensor:
        return self._conv.grad_weight(e, self._operand(a))

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        return self._conv.grad_input(e, w)


class _FloatConv(ConvProducts):
    def __init__(self, layer: ConvLayer, precision: Precision) -> None:
        self._layer = layer
        self._precision = precision
        self._groups = layer.in_channels if layer.depthwise else 1

    def forward(self, a: Feature, w: Tensor) -> Tensor:
        layer = self._layer
        x = _nchw(a.operand(self._precision))
        y = functional.conv2d(
            x, self._kernel(w), None, layer.stride, layer.padding, 1, self._groups
        )
        return _nhwc(y)

    def grad_weight(self, e: Tensor, a: Feature) -> Tensor:
        layer = self._layer
        shape = layer.out_channels, layer.in_channels // self._groups, layer.kernel, layer.kernel
        x = _nchw(a.operand(self._precision))
        gradient: Tensor = float_gradients.conv2d_weight(  # type: ignore[no-untyped-call]
            x, list(shape), _nchw(e), layer.stride, layer.padding, 1, self._groups
        )
        return gradient.permute(0, 2, 3, 1).reshape(layer.weight_shape)

    def grad_input(self, e: Tensor, w: Tensor) -> Tensor:
        layer = self._layer
        shape = (len(e), layer.in_channels, *layer.in_size)
        gradient: Tensor = float_gradients.conv2d_input(  # type: ignore[no-untyped-call]
            shape, self._kernel(w), _nchw(e), layer.stride, layer.padding, 1, self._groups
        )
        return _nhwc(gradient)

    def _kernel(self, w: Tensor) -> Tensor:
        k = self._layer.kernel
        return w.view(self._layer.out_channels, k, k, -1).permute(0, 3, 1, 2)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
