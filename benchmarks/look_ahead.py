r"""Fig. 6: accuracy by epoch with look-ahead and without it.

    python -m benchmarks.look_ahead --model mlp --data PATH --epochs 8 --seeds 0,1,2 --json FILE

The same network and recipe under several look-aheads:

| variant | lambda | whose losses count (engines/look_ahead.py) |
| --- | --- | --- |
| `off` | 0 | none but the unit's own |
| `on` | `--look-ahead` | all later units', in `--look-ahead-form` and `--window` |
| `exact`, `discounted` | `--look-ahead` | all later units', in this form |
| `window-1` | `--look-ahead` | the next unit's |

The gain is the difference to `off`, seed by seed. The paper's own (FF-INT8, arXiv 2506.22771v1,
Fig. 6) is read off its plot, and trained for many more epochs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group

from benchmarks.command import Parser, add_output, finish, names, plot_path, records_of, show
from benchmarks.datasets import load_sources
from benchmarks.options import (
    add_methods_and_seeds,
    add_trial_options,
    check_trial_options,
    trials_of,
)
from benchmarks.paper import FIG_6
from benchmarks.plot import SERIES, count_epochs, curve, draw, provenance
from benchmarks.report import (
    ABSENT,
    Record,
    Spread,
    accuracy,
    diverged,
    grouped,
    setting,
    spread,
    summarize,
    table,
)
from benchmarks.runner import run_trials
from benchmarks.trial import TrialError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VARIANTS: dict[str, dict[str, Any]] = {
    "off": {"look_ahead": (0.0, 0.0)},
    "on": {},
    "exact": {"look_ahead_form": "exact", "window": None},
    "discounted": {"look_ahead_form": "discounted", "window": None},
    "window-1": {"window": 1},
}


def measure(asked: argparse.Namespace) -> list[Record]:
    """A record for every variant, method and seed.

    Raises:
        TrialError: A variant is unknown, or `off` is not among them.
    """
    check_trial_options(asked)
    if unknown := sorted(set(asked.variants) - set(_VARIANTS)):
        known = ", ".join(_VARIANTS)
        raise TrialError(f"variant {unknown[0]!r} is unknown; known: {known}")
    variants = [
        {"method": method, **_VARIANTS[variant]}
        for method in asked.methods
        for variant in asked.variants
    ]
    # `on` may be the same as a variant with a name of its own.
    trials = {(t.method, t.seed, t.look_ahead, t.look_ahead_rule): t
              for t in trials_of(asked, variants)}  # fmt: skip
    return run_trials([*trials.values()], load_sources(asked.data, asked.test), asked.json)


def variant_of(record: Record) -> str:
    """How a curve is called: its method, and what is looked ahead to."""
    settings = record["settings"]
    first, last = settings["look_ahead"]
    if not (first or last):
        return f"{record['method']}, look-ahead off"
    reach = "" if settings["window"] is None else f", window {settings['window']}"
    return f"{record['method']}, {settings['look_ahead_form']}{reach}"


def gain(records: Sequence[Record], variant: str) -> Spread | None:
    """Points of accuracy above the same method without look-ahead, seed by seed.

    Returns:
        None for the latter itself, or where it was not run.
    """
    by_variant = grouped(records, variant_of)
    own = by_variant[variant]
    off = by_variant.get(f"{own[0]['method']}, look-ahead off", [])
    without = {record["seed"]: record["accuracy"] for record in off}
    found = [100 * (r["accuracy"] - without[r["seed"]]) for r in own if r["seed"] in without]
    return spread(found) if found and own is not off else None


def tabulate(records: Sequence[Record]) -> Group:
    """A row a variant."""
    rows = []
    for variant, group in grouped(records, variant_of).items():
        gained = gain(records, variant)
        first, last = group[0]["settings"]["look_ahead"]
        rows.append(
            (
                variant,
                f"{first:g} to {last:g}",
                accuracy(summarize(group)[group[0]["method"]]),
                ABSENT if gained is None else gained.text("+.2f"),
            )
        )
    return table(
        f"Fig. 6: {setting(records)}",
        ("variant", "lambda", "accuracy % after the last epoch", "points above off"),
        rows,
        f"accuracy: mean and deviation over seeds; points: median and range; {_paper(records)}"
        + diverged(records),
    )


def _paper(records: Sequence[Record]) -> str:
    if records[0]["model"] not in FIG_6:
        return "the paper does not have this network in its Fig. 6"
    off, on = FIG_6[records[0]["model"]]
    return (
        f"the paper: about {off.accuracy:g} % at epoch {off.epoch} without, "
        f"{on.accuracy:g} % at epoch {on.epoch} with look-ahead"
    )


def paint(records: Sequence[Record], panels: Sequence[Axes]) -> None:
    """A curve a variant, in a band over seeds."""
    (axes,) = panels
    for (variant, group), look in zip(
        grouped(records, variant_of).items(), _looks(records), strict=True
    ):
        by_epoch = zip(*(record["accuracy_by_epoch"] for record in group), strict=False)
        spreads = [spread([100 * value for value in values]) for values in by_epoch]
        curve(axes, range(1, len(spreads) + 1), spreads, variant, look)
    count_epochs(axes)


def _looks(records: Sequence[Record]) -> list[Any]:
    variants = grouped(records, variant_of)
    return [SERIES[index % len(SERIES)] for index in range(len(variants))]


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser(
        "python -m benchmarks.look_ahead", "Accuracy with look-ahead on and off: Fig. 6."
    )
    add_trial_options(parser, model="mlp")
    add_methods_and_seeds(parser, ("ff-int8",), (0, 1, 2))
    parser.add_argument(
        "--variants", type=names, default=("off", "on"), help=f"of: {', '.join(_VARIANTS)}"
    )
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(measure, asked))
    found = {variant: gain(records, variant) for variant in grouped(records, variant_of)}
    gains = {variant: gained._asdict() for variant, gained in found.items() if gained}
    show([tabulate(records)], {"records": len(records), "points_above_off": gains})
    draw(
        plot_path(asked),
        f"Look-ahead: {setting(records)}",
        (1, 1),
        partial(paint, records),
        f"Lines: means; bands: least to largest over seeds; {_paper(records)} "
        f"(arXiv 2506.22771v1, Fig. 6). {provenance(records)}",
        (8.0, 4.6),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
