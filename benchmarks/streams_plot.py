"""The figures of `benchmarks.streams`: one a kind of stream, and what the gate lets serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.plot import Look, curve, draw, provenance
from benchmarks.report import Record, Spread, grouped, spread
from benchmarks.stream_learners import FRESH
from benchmarks.stream_orders import CLASS_INCREMENTAL, DRIFTING, IMBALANCED
from benchmarks.stream_scores import WINDOW
from benchmarks.stream_tables import setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {
    # Wide, so that it is still seen below a learner that does as well.
    "ours": Look("#0072B2", "*", 3.2),
    FRESH: Look("#808080", "s"),
    "fine-tuning": Look("#D55E00", "X"),
    "newest": Look("#E69F00", "P"),
    "reservoir": Look("#009E73", "D"),
    "gdumb": Look("#CC79A7", "v"),
    "bp-balanced": Look("#000000", "o"),
}
_GATE_LOOKS = (
    Look("#0072B2", "*", 2.4), Look("#009E73", "D", 1.8), Look("#808080", "s", 1.4),
)  # fmt: skip
_PANEL_INCHES = (5.2, 3.6)
_MATRIX_INCHES = (3.2, 2.9)
# Where a line is broken.
_GAP = Spread(*[float("nan")] * 4)
_CLASS_PAIRS = CLASS_INCREMENTAL[0]
Blocks = Sequence[Sequence[int]]  # samples, and of them answered rightly
Paint = Callable[[Sequence[Record], "Axes"], None]


def draw_streams(path: Path, records: Sequence[Record]) -> None:
    """A PNG file for each kind of stream that there are records of.

    Args:
        path: `-classes`, `-matrix`, `-drift`, `-served` and `-imbalance` are put behind its stem.
        records: Those of `benchmarks.streams`.
    """
    note = "Lines: means; bands: least to largest over seeds. "
    windowed = f"Each point: about {WINDOW} samples, answered before they are learned. " + note
    for name, kind, title, paint, text in (
        ("classes", CLASS_INCREMENTAL, "New classes, task by task", _paint_tasks, note),
        ("drift", DRIFTING, "The world changes", _paint_drift, windowed),
        ("imbalance", IMBALANCED, "Rare classes", _paint_classes, note),
    ):
        chosen = [record for record in records if record["stream"] in kind]
        if chosen:
            _draw_panels(path, name, title, chosen, paint, text)
    served = [record for record in records if record["served"]]
    if served:
        text = "One learner, its candidates judged by each gate. " + windowed
        _draw_panels(path, "served", "What is served while the world changes", served,
                     _paint_served, text)  # fmt: skip
    pairs = [record for record in records if record["stream"] == _CLASS_PAIRS]
    if pairs:
        _draw_matrices(path, pairs)


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}")


def _draw_panels(
    path: Path, name: str, title: str, records: Sequence[Record], paint: Paint, note: str
) -> None:
    streams = grouped(records, lambda record: record["stream"])
    columns = min(2, len(streams))

    def paint_all(panels: list[Axes]) -> None:
        for axes, (stream, group) in zip(panels, streams.items(), strict=False):
            paint(group, axes)
            axes.set_title(stream)
            axes.set_ylim(0, 102)
        for axes in panels[len(streams) :]:
            axes.set_axis_off()

    draw(
        _beside(path, name),
        f"{title}: {setting(records)}",
        (-(-len(streams) // columns), columns),
        paint_all,
        note + provenance(records),
        _PANEL_INCHES,
    )


def _paint_tasks(records: Sequence[Record], axes: Axes) -> None:
    for method, group in grouped(records, lambda record: record["method"]).items():
        by_end = zip(*(record["accuracy_by_end"] for record in group), strict=True)
        spreads = [spread([100 * value for value in values]) for values in by_end]
        curve(axes, range(1, len(spreads) + 1), spreads, method, _LOOKS[method])
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("test accuracy on classes so far (%)")


def _paint_drift(records: Sequence[Record], axes: Axes) -> None:
    for method, group in grouped(records, lambda record: record["method"]).items():
        began = records[-1]["change"] if method == FRESH else 0
        runs = [record["blocks"] for record in group]
        _paint_progress(runs, group[0]["ends"], began, axes, method, _LOOKS[method])
    _mark_changes(records, axes)


def _paint_served(records: Sequence[Record], axes: Axes) -> None:
    for look, gate in zip(_GATE_LOOKS, records[0]["served"], strict=False):
        runs = [record["served"][gate]["blocks"] for record in records]
        _paint_progress(runs, records[0]["ends"], 0, axes, gate, look)
    _mark_changes(records, axes)
    axes.set_ylabel("answers right (%)")


def _paint_progress(
    runs: Sequence[Blocks], ends: Sequence[int], began: int, axes: Axes, label: str, look: Look
) -> None:
    """Right answers in %, over parts about as long as the window; none holds a change."""
    # A seed's hold-out is a few samples larger than another's.
    shortest = min([ends[-1], *(sum(count for count, _ in blocks) for blocks in runs)])
    middles: list[float] = []
    spreads: list[Spread] = []
    for start, stop in pairwise([0, *ends[:-1], shortest]):
        places = np.linspace(start, stop, max(1, round((stop - start) / WINDOW)) + 1)
        shares = [np.diff(np.interp(places, *_sums(blocks))) / np.diff(places) for blocks in runs]
        spreads += [spread([100 * float(v) for v in values]) for values in np.transpose(shares)]
        middles += [began + float(place) for place in (places[1:] + places[:-1]) / 2]
        spreads.append(_GAP)
        middles.append(began + stop)
    curve(axes, middles, spreads, label, look)


def _sums(blocks: Blocks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples, and right answers, by each block's end."""
    sums = np.cumsum([(0, 0), *blocks], axis=0, dtype=np.float64)
    return sums[:, 0], sums[:, 1]


def _mark_changes(records: Sequence[Record], axes: Axes) -> None:
    for place in records[-1]["ends"][:-1]:
        axes.axvline(place, color="0.6", linestyle=":", linewidth=1.2)
    axes.set_xlabel("samples learned (dotted: the world changes)")
    axes.set_ylabel("progressive accuracy (%)")


def _paint_classes(records: Sequence[Record], axes: Axes) -> None:
    for method, group in grouped(records, lambda record: record["method"]).items():
        ranked = [
            np.take(r["class_accuracy"], np.argsort(r["class_samples"], kind="stable")[::-1])
            for r in group
        ]
        spreads = [
            spread([100 * float(value) for value in values]) for values in np.transpose(ranked)
        ]
        curve(axes, range(1, len(spreads) + 1), spreads, method, _LOOKS[method])
    axes.set_xlabel("class, from the most frequent to the rarest")
    axes.set_ylabel("test accuracy of the class (%)")


def _draw_matrices(path: Path, records: Sequence[Record]) -> None:
    methods = grouped(records, lambda record: record["method"])

    def paint(panels: list[Axes]) -> None:
        for axes, (method, group) in zip(panels, methods.items(), strict=False):
            matrix = 100 * np.mean([record["accuracy_matrix"] for record in group], axis=0)
            axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            axes.grid(visible=False)
            tasks = range(len(matrix))
            for after in tasks:
                for task in tasks[: after + 1]:
                    value = matrix[after, task]
                    axes.text(
                        task, after, f"{value:.0f}", ha="center", va="center", fontsize=9,
                        color="white" if value > 55 else "black",
                    )  # fmt: skip
            axes.set_title(method)
            axes.set_xticks(tasks, [str(task + 1) for task in tasks])
            axes.set_yticks(tasks, [str(task + 1) for task in tasks])
            axes.set_xlabel("judged on task")
            axes.set_ylabel("after task")
        for axes in panels[len(methods) :]:
            axes.set_axis_off()

    columns = min(3, len(methods))
    draw(
        _beside(path, "matrix"),
        f"Tasks remembered: {setting(records)}",
        (-(-len(methods) // columns), columns),
        paint,
        f"Stream {_CLASS_PAIRS}: test accuracy in %, mean over seeds. {provenance(records)}",
        _MATRIX_INCHES,
    )
