"""What an answer is read from, in numbers alone: which units judge, which activities are a class's.

No torch, so that an export reads the same activities as the engines do.
"""

from __future__ import annotations

import math

from models.spec import FORWARD_FORWARD, ModelSpec
from models.units import DenseUnitSpec


def judging_units(units: int, last: int | None = None) -> range:
    """Which units' goodness makes the answer.

    The first unit sees only raw input and is the weakest judge; it decides only when it is alone
    (Hinton 2022, arXiv 2212.13345, section 3.3). Linear heads are classifiers themselves, and the
    later ones know what the earlier ones do: for them, the last or the last few.

    Args:
        units: K.
        last: How many units, counted from the end; None: all but the first.

    Raises:
        ValueError: `last` is not in 1..K.
    """
    if last is None:
        return range(min(1, units - 1), units)
    if not 1 <= last <= units:
        raise ValueError(f"the last {last} units cannot judge: there are {units}")
    return range(units - last, units)


def judges_of(spec: ModelSpec) -> range:
    """Which units judge in a network: those with linear heads the last alone."""
    linear = spec.objective != FORWARD_FORWARD and not isinstance(spec.units[0], DenseUnitSpec)
    return judging_units(len(spec.units), last=1 if linear else None)


def group_runs(width: int, classes: int) -> list[tuple[int, int]]:
    """How activities (channels) are shared among classes: contiguous groups, larger ones first.

    Args:
        width: How many activities.
        classes: C.

    Returns:
        Runs of equal groups, `(groups, size of each)`: to be sliced and reshaped, never gathered.

    Raises:
        ValueError: `width` is less than C, so that some class would own nothing.
    """
    if width < classes:
        raise ValueError(f"{width} activities cannot be shared among {classes} classes")
    # Not divmod: a compiler that keeps the width symbolic does not know it.
    small, larger = width // classes, width % classes
    runs = [(larger, small + 1), (classes - larger, small)]
    return [(count, size) for count, size in runs if count]


def label_length(spec: ModelSpec, label_value: float) -> float:
    """What a label's place holds under `ff`, beside a sample whose inputs have a mean square of 1.

    Args:
        spec: The network.
        label_value: Length of a label beside its sample; see engines/rule.py.
    """
    return label_value * math.sqrt(spec.units[0].input_shape[-1] - spec.label_places)
