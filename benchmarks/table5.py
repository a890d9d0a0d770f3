r"""Table V: accuracy, time, energy and memory of every method on every network, as ratios.

    python -m benchmarks.table5 --json FILE --seeds 0,1,2 \
        --network "--model mlp --data MNIST --epochs 8" \
        --network "--model resnet18 --width 0.25 --data CIFAR --epochs 10 --augment"

Each `--network` holds the options of one network's trials, those of `benchmarks.train`. For each:

    accuracy, energy   a trial for every method and seed, each in a child process
    time               steps of all methods timed in turn in one process (benchmarks/steps.py)
    memory             short trials in fresh processes, seen in two ways (benchmarks/memory.py)

Ratios are taken seed by seed, round by round, repeat by repeat, and stand beside those of the paper
(FF-INT8, arXiv 2506.22771v1, Table V), whose sizes, data and machine are others: a ratio can be
compared, a value cannot. Where no energy meter is readable, energy is unmeasured.

With `--keep` the file's records of other networks stay, so that networks can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from benchmarks import memory, steps
from benchmarks.command import Parser, add_output, finish, plot_path, records_of, show, write_json
from benchmarks.datasets import load_sources
from benchmarks.options import (
    add_methods_and_seeds,
    add_trial_options,
    check_trial_options,
    trials_of,
)
from benchmarks.paper import TABLE_V, Cost
from benchmarks.plot import LOOKS, PAPER_GREY, draw, provenance
from benchmarks.report import (
    ABSENT,
    Record,
    Spread,
    accuracy,
    diverged,
    ratios,
    setting,
    shown,
    spread,
    summarize,
    table,
)
from benchmarks.runner import run_trials
from benchmarks.steps import REFERENCES
from benchmarks.trial import BASELINE, TrialError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = ("bp-fp32", "bp-int8", "bp-ui8", "bp-gdai8-like", "ff-int8")
_OWN = "ff-int8"
_UNMEASURED = "unmeasured"
# What is compared, and the paper's field for it.
_MEASURES = {
    "points": "accuracy",
    "time": "seconds",
    "peak memory": "megabytes",
    "live memory": "megabytes",
    "energy": "joules",
}


def network_options(text: str) -> argparse.Namespace:
    """The options of one `--network`.

    Raises:
        StoppedError: They cannot be understood.
    """
    parser = Parser("--network", "Options of one network's trials.")
    add_trial_options(parser, batch=32)
    return parser.parse_args(shlex.split(text))


def measure(asked: argparse.Namespace) -> list[Record]:
    """A record a network: `trials`, `steps` and `memory`.

    Raises:
        TrialError: There is no network, or one has no data.
    """
    networks = [network_options(text) for text in asked.network]
    if not networks:
        raise TrialError("there is no --network; wanted at least one")
    shared = {**vars(asked), "json": None, "network": None}
    for network in networks:
        vars(network).update({name: value for name, value in shared.items()})
        check_trial_options(network)
        trials_of(network, [{"method": method} for method in network.methods])
    own = {(network.model, network.width) for network in networks}
    records: list[Record] = []
    if asked.keep and asked.json.exists():
        kept: list[Record] = json.loads(asked.json.read_text(encoding="utf-8"))
        records = [r for r in kept if (r["steps"]["model"], r["steps"]["width"]) not in own]
    for network in networks:
        variants = [{"method": method} for method in network.methods]
        sources = load_sources(network.data, network.test)
        records.append(
            {
                "trials": run_trials(trials_of(network, variants), sources),
                "steps": steps.measured(network),
                "memory": memory.measure(network),
            }
        )
        write_json(asked.json, records)
    return records


def compared(record: Record, what: str, method: str, reference: str) -> Spread | None:
    """A method against another on one network: points of accuracy, or a ratio.

    Args:
        record: Of the network.
        what: One of `points`, `time`, `peak memory`, `live memory`, `energy`.
        method: In the numerator.
        reference: In the denominator.

    Returns:
        None where it was not measured, and of a method against itself.
    """
    if method == reference:
        return None
    if what == "points":
        trials = record["trials"]
        base = {r["seed"]: r["accuracy"] for r in trials if r["method"] == reference}
        own = {r["seed"]: r["accuracy"] for r in trials if r["method"] == method}
        found = [100 * (own[seed] - base[seed]) for seed in own if seed in base]
        return spread(found) if found else None
    if what == "time":
        return steps.ratio(record["steps"]["methods"], method, reference)
    if what == "energy":
        return ratios(record["trials"], "energy_joules", method, reference)
    field = memory.MEMORY_FIELDS[what.split()[0]]
    return ratios(record["memory"], field, method, reference)


def printed(record: Record, what: str, method: str, reference: str) -> float | None:
    """The same from the paper's Table V; None where it has no such row."""
    rows: dict[str, Cost] = TABLE_V.get(record["steps"]["model"], {})
    if method == reference or method not in rows or reference not in rows:
        return None
    own, base = (getattr(rows[name], _MEASURES[what]) for name in (method, reference))
    return float(own - base if what == "points" else own / base)


def tabulate_network(record: Record) -> Group:
    """A row a method: values, and what they are of `bp-fp32`."""
    trials, timed = record["trials"], record["steps"]["methods"]
    rows = []
    for method, summary in summarize(trials).items():
        peak, live = (
            memory.bytes_of(record["memory"], method, field) for field in memory.MEMORY_FIELDS
        )
        points, time, of_peak, of_live = (
            _text(record, what, method, BASELINE) for what in [*_MEASURES][:4]
        )
        rows.append(
            (
                method,
                accuracy(summary),
                points,
                spread(timed[method]["milliseconds"]).text(".2f"),
                time,
                shown(peak.median if peak else None, ".1f", 2.0**-20),
                of_peak,
                shown(live.median if live else None, ".1f", 2.0**-20),
                of_live,
                _energy(summary),
            )
        )
    of = f"of {BASELINE}"
    return table(
        f"Table V: {setting(trials)}; threads {record['steps']['machine']['threads']}, "
        f"{_chains(record)}",
        (
            "method", "accuracy %", "points", "step ms", of, "peak MiB", of, "live MiB", of,
            "energy J",
        ),
        rows,
        "accuracy: mean and deviation; others: median and range; in [brackets] the paper's"
        + diverged(trials),
    )  # fmt: skip


def _text(record: Record, what: str, method: str, reference: str) -> str:
    found = compared(record, what, method, reference)
    paper = printed(record, what, method, reference)
    form = "+.2f" if what == "points" else ".2f"
    missing = _UNMEASURED if what == "energy" and method != reference else ABSENT
    text = missing if found is None else found.text(form)
    return text if paper is None else f"{text} [{paper:{form}}]"


def _energy(summary: dict[str, Any]) -> str:
    joules = summary["energy_joules"]
    return _UNMEASURED if joules is None else f"{joules:.0f}"


def tabulate_comparison(records: Sequence[Record]) -> Group:
    """Forward-Forward against each reference, a row a network."""
    rows = [
        (
            f"{record['steps']['model']}, width {record['steps']['width']:g}",
            reference,
            *(_text(record, what, _OWN, reference) for what in _MEASURES),
        )
        for record in records
        for reference in REFERENCES
        if reference in record["steps"]["methods"] and _OWN in record["steps"]["methods"]
    ]
    return table(
        f"{_OWN} against back-propagation",
        ("network", "against", *_MEASURES),
        rows,
        "points of accuracy, and ratios; median and range; in [brackets] the paper's",
    )


def paint(records: Sequence[Record], measures: Sequence[str], panels: Sequence[Axes]) -> None:
    """A panel a measure, a group of bars a network, a bar a method."""
    methods = list(
        dict.fromkeys(m for r in records for m in r["steps"]["methods"] if m != BASELINE)
    )
    width = 0.8 / len(methods)
    for unused in panels[len(measures) :]:
        unused.set_visible(False)
    for axes, what in zip(panels, measures, strict=False):
        for place, method in enumerate(methods):
            offset = (place - (len(methods) - 1) / 2) * width
            for network, record in enumerate(records):
                _paint_bar(axes, network + offset, 0.9 * width, record, what, method)
        axes.axhline(0.0 if what == "points" else 1.0, color="0.3", linewidth=1.0)
        axes.set_xticks(np.arange(len(records)), [_network_name(record) for record in records])
        axes.grid(visible=False, axis="x")
        axes.set_title(
            f"accuracy above {BASELINE}" if what == "points" else f"{what}, share of {BASELINE}'s"
        )
        axes.set_ylabel("points" if what == "points" else "ratio")


def _network_name(record: Record) -> str:
    measured = record["steps"]
    size = f"width {measured['width']:g}, batch {measured['batch']}"
    return f"{measured['model']}\n{size}\n{_chains(record)}"


def _chains(record: Record) -> str:
    """How INT8 methods ran: time and memory of eager chains are no measure of either."""
    timed = record["steps"]["methods"].values()
    modes = {found["settings"]["fusion"] for found in timed} - {None}
    return f"{' and '.join(sorted(modes)) or 'no INT8'} chains"


def _paint_bar(axes: Axes, x: float, width: float, record: Record, what: str, method: str) -> None:
    found = compared(record, what, method, BASELINE)
    if found is not None:
        error = [[found.median - found.low], [found.high - found.median]]
        axes.bar(
            x, found.median, width, yerr=error, color=LOOKS[method].colour, ecolor="0.5",
            capsize=2, label=method,
        )  # fmt: skip
    paper = printed(record, what, method, BASELINE)
    if paper is not None:
        axes.plot(
            x, paper, "D", markersize=5, markerfacecolor="white", markeredgecolor=PAPER_GREY,
            label="paper's Table V",
        )  # fmt: skip


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.table5", "Accuracy, time, memory and energy: Table V.")
    add = parser.add_argument
    add("--network", action="append", default=[], metavar="OPTIONS", help="of one network's trials")
    add_methods_and_seeds(parser, _METHODS, (0, 1, 2))
    steps.add_step_options(parser)
    add("--repeats", type=int, default=3, help="fresh processes a method, for its memory")
    add("--keep", action="store_true", help="the records that FILE has of other networks stay")
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(measure, asked))
    summary = {
        f"{record['steps']['model']}/{reference}": {
            what: found.median if (found := compared(record, what, _OWN, reference)) else None
            for what in _MEASURES
        }
        for record in records
        for reference in REFERENCES
    }
    show([*map(tabulate_network, records), tabulate_comparison(records)], {_OWN: summary})
    everything = [trial for record in records for trial in record["trials"]]
    measures = [
        what
        for what in _MEASURES
        if any(compared(record, what, _OWN, BASELINE) for record in records)
    ]
    if measures:
        draw(
            plot_path(asked),
            f"Every method against {BASELINE}",
            (-(-len(measures) // 2), min(2, len(measures))),
            partial(paint, records, measures),
            "Bars: median, and range over seeds, rounds or repeats. Diamonds: FF-INT8 paper (arXiv "
            "2506.22771v1), Table V, of networks at width 1 on another machine; its BP-GDAI8 "
            f"beside our stand-in. {provenance(everything)}",
            (6.4, 3.8),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
