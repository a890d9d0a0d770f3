"""How a network learns, as plain data: no torch, so that settings can be checked without it."""

from __future__ import annotations

import dataclasses

from engines.look_ahead import LookAhead

OPTIMIZER_NAMES = ("adam", "sgd")
MASTER_NAMES = ("float32", "int16", "int8")
OBJECTIVE_NAMES = ("class_goodness", "ff")
PRECISION_NAMES = ("int8", "fp32")
FUSION_NAMES = ("auto", "compiled", "eager")


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
        objective: `class_goodness`, one pass, or `ff`, the paper's two passes.
        look_ahead: Which later losses count.
        masters: Where weight matrices live: `float32`, `int16` or `int8` (engines/masters.py).
        optimizer: Moves them.
        fusion: `auto`, `compiled` or `eager` (engines/fusion.py).

    Raises:
        ValueError: A name is unknown.
    """

    precision: str = "int8"
    objective: str = "class_goodness"
    look_ahead: LookAhead = dataclasses.field(default_factory=LookAhead)
    masters: str = "float32"
    optimizer: Optimizer = Optimizer()
    fusion: str = "eager"

    def __post_init__(self) -> None:
        for what, name, known in (
            ("precision", self.precision, PRECISION_NAMES),
            ("objective", self.objective, OBJECTIVE_NAMES),
            ("masters", self.masters, MASTER_NAMES),
            ("fusion", self.fusion, FUSION_NAMES),
        ):
            if name not in known:
                raise ValueError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
        if self.precision == "fp32" and self.masters != "float32":
            raise ValueError(
                f"masters {self.masters!r} hold int8 codes, which precision 'fp32' has none of; "
                "wanted 'float32'"
            )
