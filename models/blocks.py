"""Units of conv networks in plain float torch, `[batch, channels, height, width]`.

Attributes carry the names of `models.units`, and each layer's weight is that of its description:
`unit.conv1.weight_matrix()` has `spec.conv1.weight_shape`. The engines keep activities with the
channels last; these modules are their reference, in torch's own order.

First weights: N(0, 2 / fan_out) with `fan_out = k*k*O`, for a depthwise layer `k*k`, so that the
mean square of an error is kept on its way back (He et al., arXiv 1502.01852v1, eq. 14, and
torchvision's choice for all these networks); gamma 1, beta 0. Differs from torchvision: it divides
a depthwise layer's fan_out by nothing, though a channel feeds one channel only; the authors'
EfficientNet divides as we do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from models.base import FFUnit, scaled_normal
from models.layers import BATCH_NORM_EPSILON, Activation, ConvLayer, SqueezeExciteSpec
from models.units import ConvUnitSpec, InvertedResidualUnitSpec, ResidualUnitSpec

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
}


class ConvNormAct(nn.Module):
    """`activation(batch_norm(conv(x)))`, without a bias: batch norm's beta is one.

    Source: Ioffe & Szegedy, arXiv 1502.03167v3, section 3.2.

    Args:
        layer: Sizes and activation function.
        generator: Draws the first weights.
    """

    def __init__(self, layer: ConvLayer, generator: torch.Generator) -> None:
        super().__init__()
        groups = layer.in_channels if layer.depthwise else 1
        # Without memory first: torch would draw values of its own, and move its global generator.
        self.conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            stride=layer.stride,
            padding=layer.padding,
            groups=groups,
            bias=False,
            device="meta",
        )
        self.bn = nn.BatchNorm2d(layer.out_channels, eps=BATCH_NORM_EPSILON)
        self.activation = layer.activation
        fan_out = layer.kernel**2 * layer.out_channels // groups
        first = scaled_normal((*self.conv.weight.shape,), fan_out, generator)
        self.conv.weight = nn.Parameter(first)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`."""
        return ACTIVATIONS[self.activation](self.bn(self.conv(x)))

    def weight_matrix(self) -> Tensor:
        """The weight as `models.layers` has it: `[O, k*k*C]`, depthwise `[C, k*k]`, copied."""
        return self.conv.weight.detach().permute(0, 2, 3, 1).flatten(1).clone()


class SqueezeExcite(nn.Module):
    """`x * sigmoid(W2 silu(W1 mean(x) + b1) + b2)`, the mean over pixels.

    Source: Hu et al., arXiv 1709.01507v4, eq. 2-4; SiLU as in EfficientNet, arXiv 1905.11946v5.

    Args:
        spec: Sizes.
        generator: Draws the first weights; biases are 0.
    """

    def __init__(self, spec: SqueezeExciteSpec, generator: torch.Generator) -> None:
        super().__init__()
        channels, reduced = spec.channels, spec.reduced
        self.fc1 = nn.Linear(channels, reduced, device="meta")
        self.fc2 = nn.Linear(reduced, channels, device="meta")
        for fc in (self.fc1, self.fc2):
            first = scaled_normal((*fc.weight.shape,), fc.out_features, generator)
            fc.weight = nn.Parameter(first)
            fc.bias = nn.Parameter(torch.zeros(fc.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H, W]`."""
        squeezed = x.mean(dim=(2, 3))  # [B, C]
        gate = torch.sigmoid(self.fc2(F.silu(self.fc1(squeezed))))
        return x * gate[:, :, None, None]


class ConvUnit(FFUnit):
    """One `ConvNormAct`: a network's stem or its last 1x1 conv."""

    def __init__(self, spec: ConvUnitSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = ConvNormAct(spec.conv, generator)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`."""
        activity: Tensor = self.conv(x)
        return activity


class BasicBlock(FFUnit):
    """`relu(conv2(conv1(x)) + shortcut(x))`.

    Source: He et al., arXiv 1512.03385v1, fig. 2 and eq. 1-2.
    """

    def __init__(self, spec: ResidualUnitSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(spec.conv1, generator)
        self.conv2 = ConvNormAct(spec.conv2, generator)
        self.shortcut = ConvNormAct(spec.shortcut, generator) if spec.shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`."""
        around = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(self.conv2(self.conv1(x)) + around)


class InvertedResidual(FFUnit):
    """`project(squeeze_excite(depthwise(expand(x))))`, plus `x` where `skip` says so.

    Source: Sandler et al., arXiv 1801.04381v4, fig. 3b; with `SqueezeExcite`, Tan & Le,
    arXiv 1905.11946v5, section 4.
    """

    def __init__(self, spec: InvertedResidualUnitSpec, generator: torch.Generator) -> None:
        super().__init__()
        gate = spec.squeeze_excite
        self.expand = ConvNormAct(spec.expand, generator) if spec.expand else None
        self.depthwise = ConvNormAct(spec.depthwise, generator)
        self.squeeze_excite = SqueezeExcite(gate, generator) if gate else None
        self.project = ConvNormAct(spec.project, generator)
        self.skip = spec.skip

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, O, H', W']`."""
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = self.project(y)
        return x + y if self.skip else y
