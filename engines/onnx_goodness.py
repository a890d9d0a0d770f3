"""Goodness as ONNX nodes: `engines/heads.py` again, forward only.

Everything is float32. The torch engine adds up a linear head in float64, and both order their sums
as they please, so a goodness agrees to float32's rounding and not to the bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from engines.judging import group_runs
from engines.onnx_graph import Graph
from engines.onnx_units import Units
from models.pooling import pool_windows, pooled_shape
from models.units import DenseUnitSpec, UnitSpec


def of_groups(graph: Graph, activity: str, width: int, classes: int) -> str:
    """Mean square of each class's group of activities.

    Args:
        graph: Gets the nodes.
        activity: Float `[B, width]`.
        width: How many activities.
        classes: C.

    Returns:
        `[B, C]`.
    """
    square = graph.node("Mul", activity, activity)
    runs = group_runs(width, classes)
    ends = [*itertools.accumulate(count * size for count, size in runs)]
    groups = []
    for (count, size), end in zip(runs, ends, strict=True):
        part = sliced(graph, square, 1, end - count * size, end)
        part = graph.node("Reshape", part, graph.sizes(0, count, size))
        groups.append(graph.node("ReduceMean", part, axes=(2,), keepdims=0))
    return joined(graph, groups, 1)


def of_squares(graph: Graph, activity: str, unit: UnitSpec) -> str:
    """The one goodness of a row: the sum of its squares for each input, or their mean.

    Args:
        graph: Gets the nodes.
        activity: Float `[B, N]` or `[B, C, H, W]`.
        unit: Whose it is; of convolutions: the mean (see engines/rule.py).

    Returns:
        `[B]`.
    """
    dense = isinstance(unit, DenseUnitSpec)
    count = unit.linear.inputs if isinstance(unit, DenseUnitSpec) else math.prod(unit.output_shape)
    axes = (1,) if dense else (1, 2, 3)
    total = graph.node("ReduceSumSquare", activity, axes=axes, keepdims=0)
    return graph.node("Div", total, graph.constant(count))


def of_linear_head(units: Units, activity: str, shape: tuple[int, ...]) -> str:
    """A linear classifier on the average-pooled activity.

    Args:
        units: Have the graph, and the head's weights.
        activity: Float `[B, C, H, W]`.
        shape: Of one sample's activity, `(H, W, C)`.

    Returns:
        `[B, classes]`.
    """
    graph = units.graph
    for axis, (size, places) in enumerate(zip(shape[:2], pooled_shape(shape)[:2], strict=True), 2):
        activity = _average_pool(graph, activity, axis, size, places)
    # The head's columns have the channels last.
    activity = graph.node("Transpose", activity, perm=(0, 2, 3, 1))
    return units.linear("head", graph.node("Flatten", activity, axis=1))


def _average_pool(graph: Graph, x: str, axis: int, size: int, places: int) -> str:
    if size == places:
        return x
    averages = [
        graph.node(
            "ReduceMean", sliced(graph, x, axis, start, start + length), axes=(axis,), keepdims=1
        )
        for start, length in pool_windows(size, places)
    ]
    return joined(graph, averages, axis)


def sliced(graph: Graph, x: str, axis: int, start: int, end: int) -> str:
    """`x` from `start` to `end` along one axis."""
    return graph.node("Slice", x, *(graph.sizes(n) for n in (start, end, axis)))


def joined(graph: Graph, parts: Sequence[str], axis: int) -> str:
    """Parts side by side along one axis."""
    return parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=axis)
