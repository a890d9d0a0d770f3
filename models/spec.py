"""What a network is, in numbers alone: enough to check weights or a request without torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

from models.efficientnet_b0 import efficientnet_b0_units
from models.layers import DenseLayer
from models.mobilenet_v2 import mobilenet_v2_units
from models.resnet import resnet8_units, resnet18_units
from models.units import DenseUnitSpec, UnitSpec

CONV_UNITS: dict[str, Callable[[tuple[int, int, int], float], tuple[UnitSpec, ...]]] = {
    "resnet8": resnet8_units,
    "resnet18": resnet18_units,
    "mobilenet_v2": mobilenet_v2_units,
    "efficientnet_b0": efficientnet_b0_units,
}
MODEL_NAMES = ("mlp", *CONV_UNITS)
CLASS_GOODNESS, FORWARD_FORWARD = OBJECTIVE_NAMES = ("class_goodness", "ff")
WIDTH_MAX = 4.0
# -128 is never used (engines/int8.py).
CODE_MAX = 127
# 127^2 K <= 2^31 - 1: the longest sum of int8 code products that an int32 holds.
CONTRACTION_MAX = (2**31 - 1) // CODE_MAX**2


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shape of one network.

    Args:
        name: One of `MODEL_NAMES`.
        input_shape: Shape of one sample without the batch axis: `[features]`, `[channels, length]`
            or `[channels, height, width]`; a conv network takes the last form only.
        max_classes: Places for classes, C. Every unit's goodness has this many values.
        hidden: Width of each unit of the MLP; empty for a conv network.
        width: Factor on the channels of a conv network; 1 for the MLP.
        objective: What the units learn (engines/objective.py): `class_goodness`, or `ff`, for which
            the first unit has C more inputs (channels), the label's places (engines/labels.py).

    Raises:
        ValueError: A size is not positive or too large, a name is unknown, a field is of the other
            kind of network, or under `class_goodness` a dense unit is narrower than C, so that some
            class would own no activity.
    """

    name: str
    input_shape: tuple[int, ...]
    max_classes: int
    hidden: tuple[int, ...] = ()
    width: float = 1.0
    objective: str = CLASS_GOODNESS

    def __post_init__(self) -> None:
        if self.name not in MODEL_NAMES:
            raise ValueError(f"model {self.name!r} is unknown; known: {', '.join(MODEL_NAMES)}")
        if self.objective not in OBJECTIVE_NAMES:
            known = ", ".join(OBJECTIVE_NAMES)
            raise ValueError(f"objective {self.objective!r} is unknown; known: {known}")
        if not 1 <= len(self.input_shape) <= 3 or min(self.input_shape) < 1:
            raise ValueError(
                f"input_shape {list(self.input_shape)} must be [features], [channels, length] or "
                "[channels, height, width] with positive sizes"
            )
        if self.max_classes < 2:
            raise ValueError(f"max_classes is {self.max_classes}; a classifier needs at least 2")
        if self.name == "mlp":
            self._check_mlp()
        else:
            self._check_conv()

    def _check_mlp(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"hidden {list(self.hidden)} needs at least one unit of positive width"
            )
        if self.objective == CLASS_GOODNESS and min(self.hidden) < self.max_classes:
            raise ValueError(
                f"hidden {list(self.hidden)} needs at least one unit, each at least max_classes = "
                f"{self.max_classes} wide: every class owns a group of activities in every unit"
            )
        if self.width != 1:
            raise ValueError(
                f"width is {self.width}; it scales the channels of conv networks, hidden says how "
                "wide the mlp is"
            )
        _check_contraction(max(self.features + self.label_places, *self.hidden))

    def _check_conv(self) -> None:
        if len(self.input_shape) != 3:
            raise ValueError(
                f"input_shape {list(self.input_shape)} must be [channels, height, width] for "
                f"{self.name}"
            )
        if self.hidden:
            raise ValueError(
                f"hidden {list(self.hidden)} is for the mlp; width scales the channels of "
                f"{self.name}"
            )
        if not 0 < self.width <= WIDTH_MAX:
            raise ValueError(f"width is {self.width}; wanted above 0, at most {WIDTH_MAX:g}")
        layers = [layer for unit in self.units for layer in unit.layers.values()]
        _check_contraction(max(layer.contraction for layer in layers))

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)

    @property
    def label_places(self) -> int:
        """Inputs (channels) of the first unit beyond a sample's own: C under `ff`, else none."""
        return self.max_classes if self.objective == FORWARD_FORWARD else 0

    @property
    def units(self) -> tuple[UnitSpec, ...]:
        """What each local loss trains, first to last."""
        if self.name in CONV_UNITS:
            channels, height, width = self.input_shape
            first = (channels + self.label_places, height, width)
            return CONV_UNITS[self.name](first, self.width)
        return tuple(DenseUnitSpec(DenseLayer(*sizes)) for sizes in self.unit_sizes)

    @property
    def unit_sizes(self) -> list[tuple[int, int]]:
        """`(inputs, outputs)` of each dense unit, in order.

        Raises:
            ValueError: The network has units of another kind.
        """
        if self.name != "mlp":
            raise ValueError(f"{self.name} has no dense units; see ModelSpec.units")
        return list(itertools.pairwise((self.features + self.label_places, *self.hidden)))

    @property
    def parameters(self) -> int:
        """Trained numbers of all units. Heads are not counted: they are the objective's."""
        return sum(unit.parameters for unit in self.units)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass, P. Heads are not counted."""
        return sum(unit.macs for unit in self.units)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values.

        Without `width` where it is 1, and without `objective` where it is `class_goodness`: the
        digests of weights written before there were these fields stay as they are.
        """
        fields = dataclasses.asdict(self)
        if self.width == 1:
            del fields["width"]
        else:
            fields["width"] = float(self.width)
        if self.objective == CLASS_GOODNESS:
            del fields["objective"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`.

        Raises:
            ValueError: A field is missing, extra, or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() - known:
            raise ValueError(f"model description must hold just {', '.join(sorted(known))}")
        width = fields.get("width", 1.0)
        if isinstance(width, bool) or not isinstance(width, (int, float)):
            raise ValueError(f"width is {width!r}; wanted a number")
        try:
            return cls(
                name=fields["name"],
                input_shape=tuple(map(operator.index, fields["input_shape"])),
                max_classes=operator.index(fields["max_classes"]),
                hidden=tuple(map(operator.index, fields["hidden"])),
                width=width,
                objective=fields.get("objective", CLASS_GOODNESS),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"model description is incomplete: {error}") from error


def _check_contraction(longest: int) -> None:
    if longest > CONTRACTION_MAX:
        raise ValueError(
            f"a sum would have {longest} products; an int32 holds the sum of at most "
            f"{CONTRACTION_MAX} products of int8 codes"
        )
