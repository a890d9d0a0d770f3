r"""Table IV by our own accounting, and whether the time of a step follows it.

    python -m benchmarks.operations --hidden 500,500,500 --batch 10 --json FILE

**Counts.** For each method, what one step multiplies and rounds, walked through the network's
description (`benchmarks/accounting.py`), and the multiply-accumulates that one real step brought to
the kernels (`benchmarks/product_counter.py`). The second are at least the first; what is more is
padding, of the shapes that the INT8 kernel demands. The defaults are the network that Table IV's
"4-layer MLP" seems to be, at its batch; the paper's figures stand beside, and are not to be quoted
without the correction in `benchmarks/paper.py`.

**Cost.** The measured time of an ff-int8 step against its INT8 multiply-accumulates, over several
batch sizes and over several widths (`benchmarks/step_cost.py`). `--rounds 0` leaves this out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from benchmarks.accounting import Counts, count_backprop, count_forward_forward
from benchmarks.command import (
    Parser,
    add_output,
    finish,
    plot_path,
    records_of,
    show,
)
from benchmarks.datasets import MADE_UP
from benchmarks.meter import commit, machine
from benchmarks.options import (
    add_shape_options,
    add_trial_options,
    check_trial_options,
    sources_of,
    trial_of,
    use_threads,
)
from benchmarks.paper import TABLE_IV, Operations
from benchmarks.plot import LOOKS, PAPER_GREY, draw, provenance
from benchmarks.report import ABSENT, Record, table
from benchmarks.samples import Samples
from benchmarks.step_cost import (
    add_cost_options,
    costs,
    fitted,
    paint_sweep,
    sweeps,
    tabulate_sweep,
)
from benchmarks.trial import TWO_PASS, LinearSpec, Trial, TrialError
from models import ModelSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BACKPROP = ("bp-fp32", "bp-fp32-checkpoint", "bp-int8", "bp-int8-strong", "bp-gdai8-like")
_FORWARD_FORWARD = ("ff-int8", TWO_PASS)
_MILLION = 1e-6


def measure_all(asked: argparse.Namespace) -> list[Record]:
    """Records of two kinds: a `count` a method, a `cost` a batch size or width."""
    check_trial_options(asked)
    use_threads(asked)
    largest = max(asked.batch, asked.widths_batch, *asked.batches)
    train = sources_of(asked, largest).train
    own = {"commit": commit(Path(__file__).parent), "machine": machine()}
    found = counts(asked, train) + (costs(asked, train) if asked.rounds else [])
    return [record | own for record in found]


def counts(asked: argparse.Namespace, train: Samples) -> list[Record]:
    """What a step of each method takes, walked and counted."""
    records = []
    for name, trial, weight in _rows(asked):
        spec = _units_of(trial, train)
        batch = trial.batch
        if trial.method.startswith("ff-"):
            walked = count_forward_forward(spec, batch, trial.look_ahead_rule, weight)
        else:
            walked = count_backprop(spec, trial.method, batch)
        records.append(_count(name, trial, spec, walked) | {"counted": count_step(trial, train)})
    return records


def _rows(asked: argparse.Namespace) -> list[tuple[str, Trial, float]]:
    """Name of each row, the trial whose step it is, and lambda."""
    weight = asked.look_ahead[0]
    rows = [(m, trial_of(asked, method=m), weight) for m in _BACKPROP]
    for method in _FORWARD_FORWARD:
        looking = trial_of(asked, method=method)
        plain = dataclasses.replace(looking, look_ahead=(0.0, 0.0))
        rule = looking.look_ahead_rule
        reach = "" if rule.window is None else f", window {rule.window}"
        rows.append((f"{method}, lambda 0", plain, 0.0))
        rows.append((f"{method}, {rule.form}{reach}", looking, weight))
    return rows


def _units_of(trial: Trial, train: Samples) -> ModelSpec:
    spec = trial.spec(train.x.shape[1:], len(train.classes))
    if isinstance(spec, LinearSpec):
        raise TrialError("--hidden is empty; wanted a network of at least one unit")
    return spec


def _count(name: str, trial: Trial, spec: ModelSpec, walked: Counts) -> Record:
    return {
        "kind": "count",
        "name": name,
        "method": trial.method,
        "model": spec.name,
        "width": trial.width,
        "hidden": list(spec.hidden),
        "input_shape": list(spec.input_shape),
        "batch": trial.batch,
        "forward_macs": trial.batch * spec.macs,
        "walked": dataclasses.asdict(walked),
        "comparisons": walked.comparisons,
        "multiply_adds": walked.multiply_adds,
    }


def count_step(trial: Trial, train: Samples) -> dict[str, int]:
    """The MACs that one real step brought to the kernels, `int8` and `float32`.

    Eager, so that no product is inside compiled code; with float32 masters, which have none.
    """
    from benchmarks.methods import METHODS
    from benchmarks.product_counter import ProductCounter

    trial = dataclasses.replace(trial, fusion="eager", masters="float32")
    spec = trial.spec(train.x.shape[1:], len(train.classes))
    method = METHODS[trial.method](trial, spec, train)
    method.start_step(trial.epochs / 2)
    batch = train.take(np.arange(trial.batch) % len(train)).floats(trial.batch)
    method.step(batch.x, batch.labels)  # the first one searches clips, where a method does
    with ProductCounter() as counter:
        method.step(batch.x, batch.labels)
    macs: dict[str, int] = counter.macs
    return macs


def tabulate_counts(records: Sequence[Record]) -> Group:
    """A row a method, in millions; the paper's below."""
    rows = []
    for record in records:
        walked, counted = Counts(**record["walked"]), record["counted"]
        padding = sum(counted.values()) / (walked.int8_gemm + walked.float32) - 1
        rows.append(
            (
                record["name"],
                f"{(walked.int8 + walked.float32) / record['forward_macs']:.2f}",
                f"{walked.int8 * _MILLION:.2f}",
                f"{walked.float32 * _MILLION:.2f}",
                f"{record['comparisons'] * _MILLION:.3f}",
                f"{record['multiply_adds'] * _MILLION:.3f}",
                f"{counted['int8'] * _MILLION:.2f}",
                f"{counted['float32'] * _MILLION:.2f}",
                f"{padding:+.1%}",
            )
        )
    first = records[0]
    for method, printed in _printed(first).items():
        in_int8 = method != "bp-fp32"
        macs = f"{printed.macs:.1f}"
        rows.append(
            (
                f"paper: {method}", ABSENT,
                macs if in_int8 else ABSENT, ABSENT if in_int8 else macs,
                f"{printed.comparisons:.4f}", f"{printed.additions:.4f}", ABSENT, ABSENT, ABSENT,
            )
        )  # fmt: skip
    return table(
        f"Table IV: millions of operations a step, {_what(first)}, "
        f"P = {first['forward_macs'] * _MILLION:.2f}",
        (
            "method", "in P", "INT8 MACs", "float MACs", "comparisons", "multiply-adds",
            "counted INT8", "counted float", "padding",
        ),
        rows,
        "comparisons and multiply-adds: of the quantization phase; counted: by operand shapes in a "
        "real step; padding: counted above walked, depthwise left out; P: of the row's network. "
        "The paper's 898.2 is 39 times what its network takes.",
    )  # fmt: skip


def _printed(record: Record) -> dict[str, Operations]:
    """The paper's rows, which are of an mlp."""
    return TABLE_IV if record["model"] == "mlp" else {}


def _what(record: Record) -> str:
    hidden = f" {record['hidden']}" if record["hidden"] else ""
    return (
        f"{record['model']}{hidden} at width {record['width']:g}, input {record['input_shape']}, "
        f"batch {record['batch']}"
    )


def paint(records: Sequence[Record], panels: Sequence[Axes]) -> None:
    """Counts, then a panel a sweep."""
    _paint_counts([record for record in records if record["kind"] == "count"], panels[0])
    found = sweeps([record for record in records if record["kind"] == "cost"])
    for axes, (sweep, points) in zip(panels[1:], found.items(), strict=True):
        paint_sweep(sweep, points, axes)


def _paint_counts(records: Sequence[Record], axes: Axes) -> None:
    for place, record in enumerate(records):
        walked = Counts(**record["walked"])
        millions = (walked.int8 + walked.float32) * _MILLION
        colour = LOOKS[record["method"]].colour
        axes.barh(place, millions, color=colour)
        axes.annotate(
            f"{millions:.3g}",
            (millions, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        # The paper's own method has two passes, and no look-ahead in what it counts.
        name = "ff-int8" if record["name"] == f"{TWO_PASS}, lambda 0" else record["name"]
        printed = _printed(record).get(name)
        if printed:
            axes.plot(
                printed.macs, place, "D", markerfacecolor="white", markeredgecolor=PAPER_GREY,
                label="paper's Table IV" if record["method"] == "bp-fp32" else None,
            )  # fmt: skip
    axes.set_yticks(range(len(records)), [record["name"] for record in records], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_xlabel("million multiply-accumulates a step")
    axes.set_title(f"counted, batch {records[0]['batch']}")


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.operations", "Operations a step: Table IV, and its cost.")
    add_trial_options(
        parser,
        leave_out=("test", "limit", "augment", "schedule", "products"),
        model="mlp", data=MADE_UP, epochs=2, batch=10, hidden=(500, 500, 500),
        look_ahead=(0.5, 0.5),
    )  # fmt: skip
    add_shape_options(parser)
    add_cost_options(parser)
    add_output(parser)
    asked = parser.parse_args(argv)
    records: list[dict[str, Any]] = records_of(asked, partial(measure_all, asked))
    count = [record for record in records if record["kind"] == "count"]
    found = sweeps([record for record in records if record["kind"] == "cost"])
    lines = {sweep: dataclasses.asdict(fitted(points)) for sweep, points in found.items()}
    macs = {r["name"]: Counts(**r["walked"]).int8 + r["walked"]["float32"] for r in count}
    show(
        [tabulate_counts(count), *(tabulate_sweep(*pair) for pair in found.items())],
        {"macs": macs, "lines": lines},
    )
    draw(
        plot_path(asked),
        f"Operations a training step: {_what(count[0])}",
        (1, 1 + len(found)),
        partial(paint, records),
        "Left: INT8 and float together, walked through the network. The "
        "FF-INT8 paper's (arXiv 2506.22771v1, Table IV) 898.2 is 39 times what its network takes. "
        f"{provenance(records)}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
