"""Units made of convolutions, as the trainer runs them.

    conv                a -> conv
    residual            relu(conv2(conv1(a)) + shortcut(a))        shortcut: a conv, or a itself
    inverted residual   project(gate(depthwise(expand(a)))) [+ a]  expand, gate: where present

A sum is computed from the codes of its two terms and rounded to codes of its own; its gradient goes
to both terms as it is. Errors travel as accumulators; where two ways lead back to one place, as
both, to be added up by the pass that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engines.conv_norm import ConvNormTrainLayer
from engines.feature import Feature
from engines.fusion import Fusion
from engines.precision import Accumulated, Precision, Terms, copied, sum_of, whole
from engines.serving_scale import ServingScale
from engines.squeeze_excite import SqueezeExciteTrainLayer
from engines.unit import Step, TrainUnit


class _Part(Protocol):
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...
    def export(self) -> dict[str, Tensor]: ...


class ConvKept(NamedTuple):
    """A conv unit's activity.

    Args:
        output: Its codes, `[B, H, W, C]`.
    """

    output: Feature

    def activity(self, precision: Precision) -> Tensor:
        """float32 `[B, H, W, C]`."""
        return self.output.dequantize(precision)

    def error_at_activity(self, later: Terms) -> Tensor:
        """See `engines.unit.Kept.error_at_activity`: the activity is what `forward` gave."""
        return sum_of(later)


class ConvTrainUnit(TrainUnit):
    """One convolution: a network's stem or its last 1x1 layer.

    Args:
        conv: The layer.
    """

    def __init__(self, conv: ConvNormTrainLayer) -> None:
        self._conv = conv
        self._parts = _Parts({"conv": conv})
        self._end = _End()

    def forward(self, a: Feature) -> Feature:
        """See `TrainUnit.forward`."""
        return self._end.keep(self._conv.forward(a))

    @property
    def kept(self) -> ConvKept:
        """See `TrainUnit.kept`."""
        return self._end.kept

    def backward(self, error: Tensor, step: Step, *, update: bool, propagate: bool) -> Terms | None:
        """See `TrainUnit.backward`."""
        self._end.read(update=update)
        return _terms(self._conv.backward(whole(error), step, update=update, propagate=propagate))

    def state(self) -> dict[str, Tensor]:
        """See `TrainUnit.state`."""
        return self._parts.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TrainUnit.load_state`."""
        self._parts.load_state(state)

    def export(self) -> dict[str, Tensor]:
        """See `TrainUnit.export`."""
        return self._parts.export()


class ResidualTrainUnit(TrainUnit):
    """A residual block.

    Args:
        conv1: First layer.
        conv2: Second, without activation.
        shortcut: Around both; None: the input itself.
        precision: Arithmetic.
        fusion: Fuses the chains.
        device: Of the layers' tensors.
    """

    def __init__(
        self,
        conv1: ConvNormTrainLayer,
        conv2: ConvNormTrainLayer,
        shortcut: ConvNormTrainLayer | None,
        precision: Precision,
        fusion: Fusion,
        device: torch.device | str,
    ) -> None:
        self._conv1, self._conv2, self._shortcut = conv1, conv2, shortcut
        self._precision = precision
        self._sum = _Sum(precision, fusion, device)
        self._through_relu = fusion.fuse(_through_relu)
        self._parts = _Parts({"conv1": conv1, "conv2": conv2, "sum": self._sum})
        if shortcut is not None:
            self._parts.named["shortcut"] = shortcut
        self._end = _End()

    def forward(self, a: Feature) -> Feature:
        """See `TrainUnit.forward`."""
        branch = self._conv2.forward(self._conv1.forward(a))
        around = a if self._shortcut is None else self._shortcut.forward(a)
        return self._end.keep(self._sum.forward(branch, around, "relu"))

    @property
    def kept(self) -> ConvKept:
        """See `TrainUnit.kept`."""
        return self._end.kept

    def backward(self, error: Tensor, step: Step, *, update: bool, propagate: bool) -> Terms | None:
        """See `TrainUnit.backward`."""
        # No name for what was kept: with an update, its memory is free for the layers.
        error = self._through_relu(error, self._end.read(update=update).output.codes)
        at_sum = whole(error)
        at_middle = self._conv2.backward(at_sum, step, update=update, propagate=True)
        assert at_middle is not None  # noqa: S101 - it was asked for
        branch = self._conv1.backward(at_middle, step, update=update, propagate=propagate)
        around: Accumulated | None = at_sum
        if self._shortcut is not None:
            # What the branch gave lies in memory that the shortcut's products use again.
            branch = None if branch is None else copied((branch,))[0]
            around = self._shortcut.backward(at_sum, step, update=update, propagate=propagate)
        return _terms(branch, around)

    def state(self) -> dict[str, Tensor]:
        """See `TrainUnit.state`."""
        return self._parts.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TrainUnit.load_state`."""
        self._parts.load_state(state)

    def export(self) -> dict[str, Tensor]:
        """See `TrainUnit.export`."""
        return self._parts.export()


class InvertedResidualTrainUnit(TrainUnit):
    """An inverted residual block.

    Args:
        expand: 1x1; None where the expansion factor is 1.
        depthwise: The middle layer.
        gate: Squeeze-and-excitation behind it; None: none.
        project: 1x1, linear.
        skip: Add the input.
        precision: Arithmetic.
        fusion: Fuses the chains.
        device: Of the layers' tensors.
    """

    def __init__(
        self,
        expand: ConvNormTrainLayer | None,
        depthwise: ConvNormTrainLayer,
        gate: SqueezeExciteTrainLayer | None,
        project: ConvNormTrainLayer,
        *,
        skip: bool,
        precision: Precision,
        fusion: Fusion,
        device: torch.device | str,
    ) -> None:
        self._expand, self._depthwise, self._gate, self._project = expand, depthwise, gate, project
        self._sum = _Sum(precision, fusion, device) if skip else None
        named: dict[str, _Part | None] = {
            "expand": expand,
            "depthwise": depthwise,
            "squeeze_excite": gate,
            "project": project,
            "sum": self._sum,
        }
        self._parts = _Parts({name: part for name, part in named.items() if part is not None})
        self._end = _End()

    def forward(self, a: Feature) -> Feature:
        """See `TrainUnit.forward`."""
        inner = a if self._expand is None else self._expand.forward(a)
        inner = self._depthwise.forward(inner)
        if self._gate is not None:
            inner = self._gate.forward(inner)
        output = self._project.forward(inner)
        if self._sum is not None:
            output = self._sum.forward(output, a, "none")
        return self._end.keep(output)

    @property
    def kept(self) -> ConvKept:
        """See `TrainUnit.kept`."""
        return self._end.kept

    def backward(self, error: Tensor, step: Step, *, update: bool, propagate: bool) -> Terms | None:
        """See `TrainUnit.backward`."""
        self._end.read(update=update)
        inner = self._project.backward(whole(error), step, update=update, propagate=True)
        assert inner is not None  # noqa: S101 - it was asked for
        if self._gate is not None:
            inner = self._gate.backward(inner, update=update)
        expand = self._expand
        passed = self._depthwise.backward(
            inner, step, update=update, propagate=propagate or expand is not None
        )
        if expand is not None and passed is not None:
            passed = expand.backward(passed, step, update=update, propagate=propagate)
        return _terms(passed) if self._sum is None else _terms(passed, whole(error))

    def state(self) -> dict[str, Tensor]:
        """See `TrainUnit.state`."""
        return self._parts.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TrainUnit.load_state`."""
        self._parts.load_state(state)

    def export(self) -> dict[str, Tensor]:
        """See `TrainUnit.export`."""
        return self._parts.export()


class _Parts:
    """What a unit is made of, by name."""

    def __init__(self, named: dict[str, _Part]) -> None:
        self.named = named

    def state(self) -> dict[str, Tensor]:
        return {
            f"{n}.{key}": v for n, part in self.named.items() for key, v in part.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, part in self.named.items():
            own = {key: state[f"{name}.{key}"] for key in part.state()}
            part.load_state(own)

    def export(self) -> dict[str, Tensor]:
        return {
            f"{n}.{key}": v for n, part in self.named.items() for key, v in part.export().items()
        }


class _Sum:
    """Adds two features, with a serving scale for the result."""

    def __init__(self, precision: Precision, fusion: Fusion, device: torch.device | str) -> None:
        self._precision = precision
        self._add = fusion.fuse(add_features)
        self._output_scale = ServingScale(device)

    def forward(self, branch: Feature, around: Feature, activation: str) -> Feature:
        codes, scale = self._add(self._precision, branch, around, None)
        self._output_scale.follow(scale)
        return Feature(codes, scale, activation)

    def state(self) -> dict[str, Tensor]:
        return {"output_scale": self._output_scale.value}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._output_scale.load(state["output_scale"])

    def export(self) -> dict[str, Tensor]:
        return {"output_scale": self._output_scale.exported}


class _End:
    """A unit's output, from its forward pass to its update."""

    def __init__(self) -> None:
        self._kept: ConvKept | None = None

    def keep(self, output: Feature) -> Feature:
        self._kept = ConvKept(output)
        return output

    @property
    def kept(self) -> ConvKept:
        if self._kept is None:
            raise RuntimeError("the unit has kept nothing: forward comes first")
        return self._kept

    def read(self, *, update: bool) -> ConvKept:
        """For a backward pass, of which an update is the last."""
        kept = self.kept
        if update:
            self._kept = None
        return kept


def add_features(
    precision: Precision, branch: Feature, around: Feature, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes of the sum of two activities and their scale, that of its absmax if none is given."""
    total = branch.dequantize(precision) + around.dequantize(precision)
    if scale is None:
        scale = precision.scale(total.abs().amax())
    return precision.quantize(total, scale), scale


def _through_relu(error: Tensor, codes: Tensor) -> Tensor:
    """An error behind the sum's ReLU, carried through it where it lies."""
    # As float32: compilers vectorise that comparison, and not the one of int8.
    return error.masked_fill_(codes.to(torch.float32) <= 0.0, 0.0)


def _terms(*found: Accumulated | None) -> Terms | None:
    """The terms of a gradient that was asked for; None where one was not."""
    terms = tuple(term for term in found if term is not None)
    return terms if len(terms) == len(found) else None
