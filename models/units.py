"""Units in numbers alone.

A unit is what one local loss trains, and is made of layers:

    dense               linear
    conv                conv
    residual            conv1 -> conv2, + shortcut or input, relu
    inverted residual   expand -> depthwise -> squeeze_excite -> project, + input

The names are those of the torch modules in `models.blocks` and `models.mlp`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

from models.layers import ConvLayer, DenseLayer, Layer, SqueezeExciteSpec

ActivityShape = tuple[int] | tuple[int, int, int]


class UnitSpec(ABC):
    """What one local loss trains."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, Layer | SqueezeExciteSpec]:
        """All that holds parameters, in the order of computation, a shortcut last."""

    @property
    @abstractmethod
    def input_shape(self) -> ActivityShape:
        """Shape of one sample's input."""

    @property
    @abstractmethod
    def output_shape(self) -> ActivityShape:
        """Shape of one sample's activity."""

    @property
    @abstractmethod
    def adds(self) -> bool:
        """Whether its activity is a sum of two."""

    @property
    def layers(self) -> dict[str, Layer]:
        """The integer products: the parts without a squeeze-and-excitation."""
        return {
            name: part
            for name, part in self.parts.items()
            if not isinstance(part, SqueezeExciteSpec)
        }

    @property
    def parameters(self) -> int:
        """Trained numbers: weights, biases, gammas and betas."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        return sum(part.macs for part in self.parts.values())


@dataclasses.dataclass(frozen=True)
class DenseUnitSpec(UnitSpec):
    """One dense layer.

    Args:
        linear: The layer.
    """

    linear: DenseLayer

    @property
    def adds(self) -> bool:
        """See `UnitSpec.adds`."""
        return False

    @property
    def parts(self) -> dict[str, Layer | SqueezeExciteSpec]:
        """See `UnitSpec.parts`."""
        return {"linear": self.linear}

    @property
    def input_shape(self) -> tuple[int]:
        """(N,)."""
        return (self.linear.inputs,)

    @property
    def output_shape(self) -> tuple[int]:
        """(N,)."""
        return (self.linear.outputs,)


@dataclasses.dataclass(frozen=True)
class ConvUnitSpec(UnitSpec):
    """One conv layer: a network's stem or its last 1x1 layer.

    Args:
        conv: The layer.
    """

    conv: ConvLayer

    @property
    def adds(self) -> bool:
        """See `UnitSpec.adds`."""
        return False

    @property
    def parts(self) -> dict[str, Layer | SqueezeExciteSpec]:
        """See `UnitSpec.parts`."""
        return {"conv": self.conv}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.conv.input_shape

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.conv.output_shape


@dataclasses.dataclass(frozen=True)
class ResidualUnitSpec(UnitSpec):
    """`y = relu(conv2(conv1(x)) + shortcut(x))`.

    Source: He et al., arXiv 1512.03385v1, fig. 2 and eq. 1-2.

    Args:
        conv1: Changes size and channels.
        conv2: Changes neither; no activation function before the sum.
        shortcut: 1x1, no activation function; None: the input itself.

    Raises:
        ValueError: The two summands differ in shape, or one has an activation function.
    """

    conv1: ConvLayer
    conv2: ConvLayer
    shortcut: ConvLayer | None

    def __post_init__(self) -> None:
        _follows("conv2", self.conv1.output_shape, self.conv2.input_shape)
        if self.conv2.activation != "none":
            raise ValueError("the activation function comes after the sum, not in conv2")
        if self.shortcut is None:
            _follows("the sum with the input", self.input_shape, self.output_shape)
            return
        _follows("the shortcut", self.input_shape, self.shortcut.input_shape)
        _follows("the sum with the shortcut", self.shortcut.output_shape, self.output_shape)
        if self.shortcut.activation != "none":
            raise ValueError("the activation function comes after the sum, not in the shortcut")

    @property
    def adds(self) -> bool:
        """See `UnitSpec.adds`."""
        return True

    @property
    def parts(self) -> dict[str, Layer | SqueezeExciteSpec]:
        """See `UnitSpec.parts`."""
        return _present(conv1=self.conv1, conv2=self.conv2, shortcut=self.shortcut)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.conv1.input_shape

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.conv2.output_shape


@dataclasses.dataclass(frozen=True)
class InvertedResidualUnitSpec(UnitSpec):
    """`y = project(gate(depthwise(expand(x)))) [+ x]`: wide inside, narrow and linear at its ends.

    Source: Sandler et al., arXiv 1801.04381v4, table 1 and fig. 3b; with a squeeze-and-excitation,
    Tan & Le, arXiv 1905.11946v5, section 4.

    Args:
        expand: 1x1; None where the expansion factor is 1.
        depthwise: Carries the stride.
        squeeze_excite: Gates what `depthwise` gives; None: no gate.
        project: 1x1, no activation function.
        skip: Add the input.

    Raises:
        ValueError: Shapes do not follow from each other, a middle layer is not depthwise, or the
            projection has an activation function.
    """

    expand: ConvLayer | None
    depthwise: ConvLayer
    squeeze_excite: SqueezeExciteSpec | None
    project: ConvLayer
    skip: bool

    def __post_init__(self) -> None:
        if not self.depthwise.depthwise:
            raise ValueError("the middle layer of an inverted residual is depthwise")
        if self.expand is not None:
            _follows("depthwise", self.expand.output_shape, self.depthwise.input_shape)
        gate = self.squeeze_excite
        if gate is not None and gate.channels != self.depthwise.out_channels:
            raise ValueError(
                f"the gate is for {gate.channels} channels, "
                f"the depthwise layer has {self.depthwise.out_channels}"
            )
        _follows("project", self.depthwise.output_shape, self.project.input_shape)
        if self.project.activation != "none":
            raise ValueError("the projection is linear: its activation function is none")
        if self.skip:
            _follows("the sum with the input", self.input_shape, self.output_shape)

    @property
    def adds(self) -> bool:
        """See `UnitSpec.adds`."""
        return self.skip

    @property
    def parts(self) -> dict[str, Layer | SqueezeExciteSpec]:
        """See `UnitSpec.parts`."""
        return _present(
            expand=self.expand,
            depthwise=self.depthwise,
            squeeze_excite=self.squeeze_excite,
            project=self.project,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.expand or self.depthwise).input_shape

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.project.output_shape


def _present(**parts: Layer | SqueezeExciteSpec | None) -> dict[str, Layer | SqueezeExciteSpec]:
    return {name: part for name, part in parts.items() if part is not None}


def _follows(what: str, given: ActivityShape, wanted: ActivityShape) -> None:
    if given != wanted:
        raise ValueError(f"{what} needs shape {[*wanted]}, it is given {[*given]}")
