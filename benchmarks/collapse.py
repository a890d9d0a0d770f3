r"""Table I and Fig. 2: does INT8 back-propagation fail with depth, and does Forward-Forward not?

    python -m benchmarks.collapse --data PATH --epochs 8 --seeds 0,1,2 --json FILE

Accuracy against the number of hidden layers of an MLP, and by epoch at the deepest; for a conv
network (`--model`), which has one depth, by epoch alone. The paper's (FF-INT8, arXiv 2506.22771v1,
Table I) stands beside. Whether the naive methods fail is what comes out, not what is asserted.
Forward-Forward needs a unit, so it begins at one hidden layer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group

from benchmarks.command import Parser, add_output, finish, integers, plot_path, records_of, show
from benchmarks.datasets import load_sources
from benchmarks.options import (
    add_methods_and_seeds,
    add_trial_options,
    check_trial_options,
    trials_of,
)
from benchmarks.paper import TABLE_I
from benchmarks.plot import LOOKS, PAPER_GREY, count_epochs, curve, draw, provenance
from benchmarks.report import (
    ABSENT,
    Record,
    accuracy,
    diverged,
    grouped,
    setting,
    spread,
    summarize,
    table,
)
from benchmarks.runner import run_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = ("bp-fp32", "bp-int8", "bp-int8-codes", "bp-int8-strong", "ff-int8")


def measure(asked: argparse.Namespace) -> list[Record]:
    """A record for every depth, method and seed."""
    check_trial_options(asked)
    depths = asked.depths if asked.model == "mlp" else (1,)
    variants = [
        {"method": method, "hidden": (asked.hidden_width,) * depth}
        for depth in depths
        for method in asked.methods
        if depth or not method.startswith("ff-")
    ]
    return run_trials(trials_of(asked, variants), load_sources(asked.data, asked.test), asked.json)


def depth_of(record: Record) -> int:
    """Hidden layers of the mlp; 0 for other networks, too."""
    return len(record["settings"]["hidden"])


def tabulate(records: Sequence[Record]) -> Group:
    """A row a depth, a column a method; the paper's beside."""
    methods = list(grouped(records, lambda record: record["method"]))
    layered = records[0]["model"] == "mlp"
    rows = []
    for depth, group in grouped(records, depth_of).items():
        summaries = summarize(group)
        own = [accuracy(summaries[m]) if m in summaries else ABSENT for m in methods]
        row = TABLE_I.get(depth, {}) if layered else {}
        printed = [str(row.get(m, ABSENT)) for m in ("bp-fp32", "bp-int8")]
        rows.append((str(depth) if layered else ABSENT, *own, *printed))
    return table(
        f"Table I: accuracy % of {setting(records)}",
        ("hidden layers", *methods, "paper FP32", "paper INT8"),
        rows,
        "mean and deviation over seeds; the paper: one run, 500 units a layer" + diverged(records),
    )


def paint(records: Sequence[Record], panels: Sequence[Axes]) -> None:
    """Accuracy by depth where there are several, then by epoch at the deepest."""
    if len(panels) > 1:
        _paint_depths(records, panels[0])
    deepest = max(map(depth_of, records))
    axes = panels[-1]
    chosen = [record for record in records if depth_of(record) == deepest]
    for method, group in grouped(chosen, lambda record: record["method"]).items():
        # A diverged run stays where it ended.
        epochs = range(1, group[0]["epochs"] + 1)
        by_epoch = [
            spread([100 * r["accuracy_by_epoch"][min(e, len(r["accuracy_by_epoch"])) - 1]
                    for r in group])
            for e in epochs
        ]  # fmt: skip
        curve(axes, epochs, by_epoch, method, LOOKS[method])
    axes.set_title(f"by epoch, {deepest} hidden layers" if deepest else "by epoch")
    count_epochs(axes)


def _paint_depths(records: Sequence[Record], axes: Axes) -> None:
    for method, group in grouped(records, lambda record: record["method"]).items():
        by_depth = grouped(group, depth_of)
        spreads = [spread([100 * r["accuracy"] for r in by_depth[d]]) for d in sorted(by_depth)]
        curve(axes, sorted(by_depth), spreads, method, LOOKS[method])
    for method, line in (("bp-fp32", ":"), ("bp-int8", "--")):
        axes.plot(
            list(TABLE_I),
            [row[method] for row in TABLE_I.values()],
            line,
            color=PAPER_GREY,
            marker=LOOKS[method].marker,
            markersize=4,
            label=f"paper: {method}",
        )
    axes.set_title("by depth")
    axes.set_xlabel("hidden layers")
    axes.set_ylabel("test accuracy (%)")
    axes.set_xticks(sorted({*map(depth_of, records), *TABLE_I}))


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.collapse", "Accuracy against depth: Table I and Fig. 2.")
    add_trial_options(parser, leave_out=("hidden",), model="mlp")
    add_methods_and_seeds(parser, _METHODS, (0, 1, 2))
    parser.add_argument(
        "--depths", type=integers, default=(0, 1, 2, 3), help="hidden layers of the mlp"
    )
    parser.add_argument("--hidden-width", type=int, default=500, help="units a hidden layer")
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(measure, asked))
    summary: dict[str, Any] = {
        str(depth): {m: s["accuracy_mean"] for m, s in summarize(group).items()}
        for depth, group in grouped(records, depth_of).items()
    }
    show([tabulate(records)], {"records": len(records), "accuracy_by_depth": summary})
    draw(
        plot_path(asked),
        f"INT8 gradients and depth: {setting(records)}",
        (1, 2 if len(summary) > 1 else 1),
        partial(paint, records),
        f"Lines: means; bands: least to largest over seeds. Grey: FF-INT8 paper (arXiv "
        f"2506.22771v1), Table I. {provenance(records)}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
