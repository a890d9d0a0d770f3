"""Whether the time of an ff-int8 step follows its multiply-accumulates: sweeps and straight lines.

Two sweeps, over batch sizes at the network's own width and over widths at one batch size, all timed
in turn in one process (`benchmarks/steps.py`). Each gets a line of its own, fitted by least squares
to the medians: what a step costs beside its products grows with the weights in the one and not in
the other.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group

from benchmarks.accounting import count_forward_forward
from benchmarks.command import Parser, integers, numbers
from benchmarks.options import trial_of
from benchmarks.plot import LOOKS
from benchmarks.report import Record, grouped, spread, table
from benchmarks.samples import Samples
from benchmarks.steps import add_step_options, measure, timing_of
from benchmarks.trial import LinearSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MILLION = 1e-6


def add_cost_options(parser: Parser) -> None:
    """What the sweeps go over, and how they are timed."""
    add = parser.add_argument
    add("--batches", type=integers, default=(16, 32, 64, 128, 256), help="whose steps are timed")
    add("--widths", type=numbers, default=(0.5, 1.0, 1.5, 2.0, 3.0), help="whose steps are timed")
    add("--widths-batch", type=int, default=128, help="samples a step in the sweep over widths")
    add_step_options(parser)


def costs(asked: argparse.Namespace, train: Samples) -> list[Record]:
    """Step times of ff-int8 over batch sizes and over widths, timed in turn."""
    batches = {f"batch {b}": trial_of(asked, method="ff-int8", batch=b) for b in asked.batches}
    widths = {
        f"width {w:g}": trial_of(asked, method="ff-int8", width=w, batch=asked.widths_batch)
        for w in asked.widths
    }
    timing = timing_of(asked)
    timed = measure(batches | widths, train, **timing)
    records = []
    for name, trial in (batches | widths).items():
        spec = trial.spec(train.x.shape[1:], len(train.classes))
        assert not isinstance(spec, LinearSpec)  # noqa: S101 - its step has just been timed
        weight = trial.look_ahead_at(trial.epochs / 2)
        walked = count_forward_forward(spec, trial.batch, trial.look_ahead_rule, weight)
        records.append(
            {
                "kind": "cost",
                "sweep": name.split()[0],
                "name": name,
                "batch": trial.batch,
                "width": trial.width,
                "macs": walked.int8,
                **timing,
                **timed[name],
            }
        )
    return records


def sweeps(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each sweep of at least two points, in order."""
    found = grouped(records, lambda record: record["sweep"])
    return {sweep: points for sweep, points in found.items() if len(points) > 1}


@dataclasses.dataclass(frozen=True)
class Line:
    """`milliseconds = start + slope * million MACs`, by least squares.

    Args:
        start: Milliseconds at no MACs.
        slope: Milliseconds a million MACs.
        explained: Share of the variance, R^2.
    """

    start: float
    slope: float
    explained: float


def fitted(records: Sequence[Record]) -> Line:
    """The line through the medians of one sweep of at least two points."""
    macs = np.array([record["macs"] * _MILLION for record in records])
    medians = np.array([spread(record["milliseconds"]).median for record in records])
    slope, start = np.polyfit(macs, medians, 1)
    residual = medians - (start + slope * macs)
    scatter = ((medians - medians.mean()) ** 2).sum()
    explained = 1.0 - (residual**2).sum() / scatter if scatter else 1.0
    return Line(float(start), float(slope), float(explained))


def tabulate_sweep(sweep: str, records: Sequence[Record]) -> Group:
    """A row a point of one sweep."""
    line = fitted(records)
    rows = []
    for record in records:
        times = spread(record["milliseconds"])
        expected = line.start + line.slope * record["macs"] * _MILLION
        rows.append(
            (
                record["name"],
                f"{record['macs'] * _MILLION:.2f}",
                times.text(".2f"),
                f"{expected:.2f}",
                f"{times.median / expected - 1:+.0%}",
            )
        )
    return table(
        f"step time of ff-int8 by {sweep}: {line.start:.2f} ms + {line.slope:.3f} ms a million "
        f"MACs, R2 {line.explained:.3f}",
        (sweep, "million MACs", "step ms", "line ms", "off the line"),
        rows,
        f"median and range over {records[0]['rounds']} rounds",
    )


def paint_sweep(sweep: str, records: Sequence[Record], axes: Axes) -> None:
    """Medians with their range, and the line through them."""
    line = fitted(records)
    macs = np.array([record["macs"] * _MILLION for record in records])
    times = [spread(record["milliseconds"]) for record in records]
    medians = np.array([one.median for one in times])
    look = LOOKS["ff-int8"]
    axes.errorbar(
        macs,
        medians,
        yerr=[medians - [one.low for one in times], [one.high for one in times] - medians],
        fmt=look.marker,
        color=look.colour,
        markersize=9,
        capsize=3,
        label="ff-int8: median and range over rounds",
    )
    ends = np.array([0.0, macs.max()])
    axes.plot(ends, line.start + line.slope * ends, "--", color="0.4", label="least squares")
    for record, x, y in zip(records, macs, medians, strict=True):
        axes.annotate(
            record["name"].split()[1], (x, y), xytext=(6, -12), textcoords="offset points",
            fontsize=9,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("million INT8 multiply-accumulates a step")
    axes.set_ylabel("step (ms)")
    fixed = "width" if sweep == "batch" else "batch"
    axes.set_title(
        f"by {sweep} ({fixed} {records[0][fixed]:g}): {line.start:.3g} ms + {line.slope:.2g} ms/M, "
        f"R\N{SUPERSCRIPT TWO} {line.explained:.3f}",
        fontsize=10,
    )
