"""What a network is, in numbers alone: enough to check weights or a request without torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from typing import Any

MODEL_NAMES = ("mlp",)
# 127^2 K <= 2^31 - 1: the longest sum of int8 code products that an int32 holds.
CONTRACTION_MAX = (2**31 - 1) // 127**2


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shape of one network.

    Args:
        name: One of `MODEL_NAMES`.
        input_shape: Shape of one sample without the batch axis: `[features]`, `[channels, length]`
            or `[channels, height, width]`.
        max_classes: Places for classes, C. Every unit's goodness has this many values.
        hidden: Width of each unit of the MLP.

    Raises:
        ValueError: A size is not positive, the name is unknown, or a unit is narrower than C, so
            that some class would own no activity.
    """

    name: str
    input_shape: tuple[int, ...]
    max_classes: int
    hidden: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in MODEL_NAMES:
            raise ValueError(f"model {self.name!r} is unknown; known: {', '.join(MODEL_NAMES)}")
        if not 1 <= len(self.input_shape) <= 3 or min(self.input_shape) < 1:
            raise ValueError(
                f"input_shape {list(self.input_shape)} must be [features], [channels, length] or "
                "[channels, height, width] with positive sizes"
            )
        if self.max_classes < 2:
            raise ValueError(f"max_classes is {self.max_classes}; a classifier needs at least 2")
        if not self.hidden or min(self.hidden) < self.max_classes:
            raise ValueError(
                f"hidden {list(self.hidden)} needs at least one unit, each at least max_classes = "
                f"{self.max_classes} wide: every class owns a group of activities in every unit"
            )

        if max(self.features, *self.hidden) > CONTRACTION_MAX:
            raise ValueError(
                f"a unit would have {max(self.features, *self.hidden)} inputs; an int32 holds the "
                f"sum of at most {CONTRACTION_MAX} products of int8 codes"
            )

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)

    @property
    def unit_sizes(self) -> list[tuple[int, int]]:
        """`(inputs, outputs)` of each unit, in order."""
        widths = (self.features, *self.hidden)
        return list(itertools.pairwise(widths))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`.

        Raises:
            ValueError: A field is missing, extra, or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() - known:
            raise ValueError(f"model description must hold just {', '.join(sorted(known))}")
        try:
            return cls(
                name=fields["name"],
                input_shape=tuple(map(operator.index, fields["input_shape"])),
                max_classes=operator.index(fields["max_classes"]),
                hidden=tuple(map(operator.index, fields["hidden"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"model description is incomplete: {error}") from error
