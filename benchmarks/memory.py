r"""Peak training memory of every method, seen in two ways.

    python -m benchmarks.memory --model resnet18 --width 1 --batch 32 \
        --methods bp-fp32,bp-fp32-checkpoint,bp-gdai8-like,ff-int8 --repeats 5 --json FILE

Every method and repeat is a short trial in a fresh child process, whose C library gives freed
memory back at once (`MALLOC_MMAP_THRESHOLD_`; times of these trials mean nothing):

    peak    high-water mark of resident memory above the loaded program and data
            (benchmarks/meter.py)
    live    highest sum of live tensor bytes within a step (benchmarks/live_bytes.py)

Both hold weights, optimizer state, gradients, activations and temporaries. The data are made up
unless `--data` names some.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from benchmarks.command import Parser, add_output, finish, names, plot_path, records_of, show
from benchmarks.datasets import MADE_UP
from benchmarks.options import (
    add_shape_options,
    add_trial_options,
    check_trial_options,
    sources_of,
    trial_of,
)
from benchmarks.plot import LOOKS, draw, provenance
from benchmarks.report import (
    ABSENT,
    Record,
    Spread,
    diverged,
    grouped,
    ratios,
    setting,
    spread,
    table,
)
from benchmarks.runner import run_trials
from benchmarks.steps import REFERENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# glibc then takes every larger block from the system and gives it back when it is freed.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_STEPS = 6
MEMORY_FIELDS = {"peak": "peak_training_bytes", "live": "planned_training_bytes"}
_MIB = 2.0**-20


def measure(asked: argparse.Namespace, file: Path | None = None) -> list[Record]:
    """A record for every method and repeat; the repeat is its seed.

    Args:
        asked: The trial's options, `methods` and `repeats`.
        file: Where the records so far are kept; None: nowhere.
    """
    check_trial_options(asked)
    samples = _STEPS * asked.batch
    trials = [
        trial_of(asked, method=method, seed=seed, limit=samples, epochs=1)
        for seed in range(asked.repeats)
        for method in asked.methods
    ]
    return run_trials(trials, sources_of(asked, samples), file, _ENVIRONMENT)


def bytes_of(records: Sequence[Record], method: str, field: str) -> Spread | None:
    """A method's memory over its repeats; None where it is not known of all."""
    values = [record[MEMORY_FIELDS[field]] for record in records if record["method"] == method]
    return spread(values) if all(values) else None


def tabulate(records: Sequence[Record]) -> Group:
    """A row a method."""
    rows = []
    for method in grouped(records, lambda record: record["method"]):
        row = [method]
        for field, name in MEMORY_FIELDS.items():
            size = bytes_of(records, method, field)
            row.append(ABSENT if size is None else size.text(".1f", _MIB))
            for reference in REFERENCES:
                own = None if method == reference else ratios(records, name, method, reference)
                row.append(ABSENT if own is None else own.text(".2f"))
        rows.append(row)
    columns = [(f"{field} MiB", *(f"of {name}" for name in REFERENCES)) for field in MEMORY_FIELDS]
    return table(
        f"training memory: {_what(records)}",
        ("method", *columns[0], *columns[1]),
        rows,
        "median and range over repeats; of: ratio, repeat by repeat" + diverged(records),
    )


def _what(records: Sequence[Record]) -> str:
    first = records[0]
    hidden = f" {first['settings']['hidden']}" if first["settings"]["hidden"] else ""
    return (
        f"{first['model']}{hidden} at width {first['width']:g}, "
        f"input {first['settings']['input_shape']}, batch {first['batch']}"
    )


def paint(records: Sequence[Record], panels: Sequence[Axes]) -> None:
    """A panel for each way of looking, a bar a method."""
    methods = [*grouped(records, lambda record: record["method"])]
    titles = {"peak": "resident memory (VmHWM)", "live": "live tensor bytes"}
    for axes, field in zip(panels, MEMORY_FIELDS, strict=True):
        for place, method in enumerate(methods):
            size = bytes_of(records, method, field)
            if size is None:
                continue
            middle = size.median * _MIB
            axes.barh(
                place,
                middle,
                xerr=[[middle - size.low * _MIB], [size.high * _MIB - middle]],
                color=LOOKS[method].colour,
                ecolor="0.5",
                capsize=3,
            )
            axes.annotate(
                f"{middle:.1f}",
                (size.high * _MIB, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )
        axes.set_yticks(np.arange(len(methods)), methods)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("MiB")
        axes.set_title(titles[field])


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.memory", "Peak training memory of every method.")
    add_trial_options(
        parser,
        leave_out=("test", "limit", "products"),
        model="mlp", data=MADE_UP, epochs=1, batch=32, look_ahead=(0.5, 0.5),
    )  # fmt: skip
    parser.add_argument(
        "--methods",
        type=names,
        default=(*REFERENCES, "ff-int8"),
        help="names with commas between",
    )
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each method")
    add_shape_options(parser)
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(measure, asked, asked.json))
    summary: dict[str, Any] = {
        f"{method}/{reference} {field}": own.median
        for method in grouped(records, lambda record: record["method"])
        for reference in REFERENCES
        for field, name in MEMORY_FIELDS.items()
        if method != reference and (own := ratios(records, name, method, reference)) is not None
    }
    show([tabulate(records)], {"setting": setting(records), "ratios": summary})
    draw(
        plot_path(asked),
        f"Peak training memory: {_what(records)}",
        (1, 2),
        partial(paint, records),
        "Above the loaded program and data, each method in fresh processes; median, and range over "
        f"repeats. {provenance(records)}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
