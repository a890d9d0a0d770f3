"""How a network learns, as plain data: no torch, so that settings can be checked without it."""

from __future__ import annotations

import dataclasses
import math

from engines.look_ahead import LookAhead

OPTIMIZER_NAMES = ("adam", "sgd")
MASTER_NAMES = ("float32", "int16", "int8")
GOODNESS_NAMES = ("auto", "sum", "mean")
NEGATIVES_NAMES = ("uniform", "hard")
PRECISION_NAMES = ("int8", "fp32")
FUSION_NAMES = ("auto", "compiled", "kernels", "eager")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Which rule moves the masters.

    Args:
        name: One of `OPTIMIZER_NAMES`.
        weight_decay: Share of a weight matrix lost per unit of learning rate; biases, gammas and
            betas do not decay.

    Raises:
        ValueError: The name is unknown, or the decay negative.
    """

    name: str = "adam"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZER_NAMES:
            known = ", ".join(OPTIMIZER_NAMES)
            raise ValueError(f"optimizer {self.name!r} is unknown; known: {known}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight decay is {self.weight_decay}; wanted 0 or more")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network learns: everything but its shape, its seed and what it is shown.

    Args:
        precision: `int8`, or `fp32` for the float twin, which cannot be exported.
        look_ahead: Which later losses count.
        masters: Where weight matrices live: `float32`, `int16` or `int8` (engines/masters.py).
        optimizer: Moves them.
        fusion: `auto`, `compiled`, `kernels` or `eager` (engines/fusion.py).
        threshold: theta of Eq. 1-2; this and all that follows is for networks whose objective is
            `ff` (engines/rule.py), others take no notice of it.
        goodness: `sum` of squares as the paper has it, `mean`, or `auto`: the sum for dense units,
            the mean for units made of convolutions.
        label_value: How long a label is as an input beside its sample.
        negatives: `uniform`, or `hard`, drawn from the network's own goodness under each label.

    Raises:
        ValueError: A name is unknown, a number is not positive, or two fields exclude each other.
    """

    precision: str = "int8"
    look_ahead: LookAhead = dataclasses.field(default_factory=LookAhead)
    masters: str = "float32"
    optimizer: Optimizer = Optimizer()
    fusion: str = "eager"
    threshold: float = 2.0
    goodness: str = "auto"
    label_value: float = 0.3
    negatives: str = "uniform"

    def __post_init__(self) -> None:
        for what, name, known in (
            ("precision", self.precision, PRECISION_NAMES),
            ("masters", self.masters, MASTER_NAMES),
            ("fusion", self.fusion, FUSION_NAMES),
            ("goodness", self.goodness, GOODNESS_NAMES),
            ("negatives", self.negatives, NEGATIVES_NAMES),
        ):
            if name not in known:
                raise ValueError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
        if self.precision == "fp32" and self.masters != "float32":
            raise ValueError(
                f"masters {self.masters!r} hold int8 codes, which precision 'fp32' has none of; "
                "wanted 'float32'"
            )
        for what, value in (("threshold", self.threshold), ("label value", self.label_value)):
            if not 0 < value < math.inf:
                raise ValueError(f"{what} is {value}; wanted above 0, and finite")
