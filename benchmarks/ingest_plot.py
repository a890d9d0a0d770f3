"""The figure of `benchmarks.ingest`: how latency is distributed, and rate against stored rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plot import SERIES, draw, provenance
from benchmarks.report import Record, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 40


def draw_ingest(path: Path, records: Sequence[Record]) -> None:
    """Latency of single posts by share of posts slower, beside the rate while a store fills.

    Args:
        path: Replaced.
        records: Those of `benchmarks.ingest`.
    """

    def paint(panels: list[Axes]) -> None:
        _paint_latency(panels[0], records)
        _paint_filling(panels[1], records)

    note = f"client on the same machine; {provenance(records)}"
    draw(path, "Ingest: acknowledged means durable", (1, 2), paint, note)


def _paint_latency(axes: Axes, records: Sequence[Record]) -> None:
    loads = [r for r in records if r["part"] in ("open", "overload") and r["latency_quantiles"]]
    groups = grouped(loads, lambda r: (r["part"], r.get("fsync_milliseconds", 0.0)))
    for look, ((part, delay), group) in zip(SERIES, groups.items(), strict=False):
        label = f"{group[0]['rate']:g} a second" if part == "open" else "at 3 times the capacity"
        label += f", fsync + {delay:g} ms" if delay else ""
        for place, record in enumerate(group):
            quantiles = record["latency_quantiles"]
            count = len(quantiles) - 1
            axes.plot(
                [1e3 * value for value in quantiles[:-1]],
                [1 - index / count for index in range(count)],
                color=look.colour,
                linewidth=look.width,
                label=label if place == 0 else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency from the planned time (ms)")
    axes.set_ylabel("share of posts that took longer")
    axes.set_title("single samples")


def _paint_filling(axes: Axes, records: Sequence[Record]) -> None:
    for look, record in zip(SERIES, [r for r in records if r["part"] == "fill"], strict=False):
        timeline = [(seconds, posts * record["batch"]) for seconds, posts in record["timeline"]]
        every = max(1, len(timeline) // _STEPS)
        pairs = [*itertools.pairwise(timeline[::every])]
        axes.plot(
            [stored / 1e6 for _, (_, stored) in pairs],
            [(b - a) / (end - begin) / 1e3 for (begin, a), (end, b) in pairs],
            color=look.colour,
            linewidth=look.width,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("samples stored (millions)")
    axes.set_ylabel("thousand samples a second")
    axes.set_title("batches into one store")
