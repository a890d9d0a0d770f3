"""Layers in numbers alone.

A layer is one integer product, with what belongs to it:

    dense   y = relu(x W^T + b)                       W [outputs, inputs]
    conv    y = activation(batch_norm(x * W))         W [O, k*k*C], depthwise [C, k*k]

A conv weight is written as the matrix that multiplies unfolded patches, tap after tap: column
`(i*k + j)*C + c` is kernel row i, kernel column j, input channel c. Padding is `k // 2` on each
side, so that a stride of 1 keeps the size. Shapes of activities are (N,) or (H, W, C): the order in
which the engines keep them in memory.

Engines, ONNX export and TensorRT serving are built from this, so it needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Activation = Literal["none", "relu", "relu6", "silu"]
# Added to the variance under batch norm's root: torch's default, which torchvision keeps in all of
# our networks.
BATCH_NORM_EPSILON = 1e-5
# Added to the mean square of a row that is divided by its root (models/base.py).
LENGTH_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """`y = relu(x W^T + b)`.

    Args:
        inputs: Width of `x`.
        outputs: Width of `y`.
    """

    inputs: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Rows and columns of W."""
        return self.outputs, self.inputs

    @property
    def contraction(self) -> int:
        """Products in one sum of the forward pass."""
        return self.inputs

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.outputs * self.inputs + self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        return self.outputs * self.inputs


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """A convolution without bias, its batch norm and its activation function.

    Args:
        in_channels: C.
        out_channels: O; a depthwise layer has O = C.
        kernel: k, odd: the window is k x k.
        stride: Pixels from one window to the next, along both axes.
        depthwise: Every channel has a kernel of its own and sees no other channel.
        activation: Function after the batch norm.
        in_size: Height and width of the input.

    Raises:
        ValueError: A number is out of range, or a depthwise layer changes the channel count.
    """

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    depthwise: bool
    activation: Activation
    in_size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.in_channels, self.out_channels, self.stride, *self.in_size) < 1:
            raise ValueError(f"{self} has a size below 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"kernel is {self.kernel}; wanted an odd number, padded by kernel // 2"
            )
        if self.depthwise and self.in_channels != self.out_channels:
            raise ValueError(
                f"a depthwise layer keeps its channels: {self.in_channels} in, "
                f"{self.out_channels} out"
            )

    @property
    def padding(self) -> int:
        """Zeros on each side of both axes."""
        return self.kernel // 2

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = self.in_size
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.in_size, self.in_channels)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.out_size, self.out_channels)

    @property
    def contraction(self) -> int:
        """Products in one sum of the forward pass."""
        return self.kernel**2 * (1 if self.depthwise else self.in_channels)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Rows and columns of W: `[O, k*k*C]`, depthwise `[C, k*k]`."""
        return self.out_channels, self.contraction

    @property
    def parameters(self) -> int:
        """Weights, and gamma and beta of the batch norm."""
        return math.prod(self.weight_shape) + 2 * self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        return math.prod(self.out_size) * math.prod(self.weight_shape)


@dataclasses.dataclass(frozen=True)
class SqueezeExciteSpec:
    """A gate in (0, 1) per sample and channel, from the channels' means: two tiny float32 layers.

    `gate = sigmoid(W2 silu(W1 mean(x) + b1) + b2)`, `W1` `[reduced, channels]`,
    `W2` `[channels, reduced]`. Source: Hu et al., arXiv 1709.01507v4, eq. 2-4, with SiLU for ReLU
    as EfficientNet has it.

    Args:
        channels: Of the activity that is gated.
        reduced: Width between the two layers.
    """

    channels: int
    reduced: int

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.macs + self.reduced + self.channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass, in float32."""
        return 2 * self.channels * self.reduced


Layer = DenseLayer | ConvLayer
