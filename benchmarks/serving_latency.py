r"""How much later predictions are answered while the learner trains, on the same processors.

    python -m benchmarks.serving_latency --json FILE
    python -m benchmarks.serving_latency --json FILE --rounds 10 --seconds 20 \
      --variant niceness=10 --variant policy=idle --variant governor.max_duty=0.5

A real `ffedge serve` is asked for predictions at random times at a stated rate, from a process of
its own on the same machine, whether or not earlier ones were answered; latency counts from the
planned time. Rounds with training off (paused by the API) and on (new samples and rehearsal without
a rest) take turns, and so do the variants, each a daemon of its own that waits meanwhile. The ratio
is that of a round to its neighbour; how much the learner got of the processors stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from benchmarks.command import Parser, check_writable, finish, integers, show, write_json
from benchmarks.meter import commit, machine
from benchmarks.report import Record, Spread, grouped, spread, table
from benchmarks.serving_rounds import Load, Variant, measure
from benchmarks.trial import TrialError

PROMISED_RATIO = 1.5


def ratios(records: Sequence[Record], field: str) -> Spread:
    """A figure with training over the same without, round by round, of one variant."""
    off = {r["round"]: r[field] for r in records if not r["training"]}
    return spread([r[field] / off[r["round"]] for r in records if r["training"]])


def tabulate(records: Sequence[Record]) -> list[Group]:
    """One row a variant and mode."""
    rows = []
    for variant, of_variant in grouped(records, lambda r: str(r["variant"])).items():
        for training, group in grouped(of_variant, lambda r: bool(r["training"])).items():
            row = [variant, "on" if training else "off", f"{group[0]['duty']:.2f}"]
            for field, form, factor in (
                ("p50", ".2f", 1e3),
                ("p99", ".2f", 1e3),
                ("p999", ".2f", 1e3),
                ("lag_p99", ".2f", 1e3),
                ("learner_cpu_ratio", ".2f", 1.0),
                ("server_cpu_ratio", ".2f", 1.0),
                ("steps", ".0f", 1.0),
            ):
                row.append(spread([r[field] for r in group]).text(form, factor))
            pair = (ratios(of_variant, field) for field in ("p50", "p99")) if training else ()
            rows.append([*row, *([r.text(".2f") for r in pair] or ["", ""])])
    headings = (
        "learner", "training", "duty", "p50 ms", "p99 ms", "p99.9 ms", "client late ms",
        "learner CPU", "server CPU", "steps", "p50 on/off", "p99 on/off",
    )  # fmt: skip
    text = "median and range over rounds; client late: p99 of how late it sent"
    return [table("predictions while the learner trains", headings, rows, text)]


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    return {
        variant: {
            "p99_ratio": ratios(group, "p99").median,
            "p50_ratio": ratios(group, "p50").median,
            "failed": sum(n for r in group for s, n in r["statuses"].items() if int(s) != 200)
            + sum(r["unanswered"] for r in group),
            "promised": ratios(group, "p99").median <= PROMISED_RATIO,
        }
        for variant, group in grouped(records, lambda r: str(r["variant"])).items()
    }


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.serving_latency", "Predict while the learner trains.")
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="records go here; replaced")
    add("--seconds", type=float, default=10.0, help="of load in each round")
    add("--rounds", type=int, default=5, help="with training off and on, of each variant")
    add("--rate", type=float, default=200.0, help="predictions a second")
    add("--samples-rate", type=float, default=64.0, help="samples posted a second meanwhile")
    add("--features", type=int, default=784, help="values a sample")
    add("--hidden", type=integers, default=(500, 500, 500), help="widths of the network")
    add(
        "--variant",
        type=_variant,
        action="append",
        help="key=value,... of [learner], cores=0+1, policy=idle",
    )
    asked = parser.parse_args(argv)
    if asked.rounds < 1 or asked.seconds <= 0 or asked.rate <= 0:
        raise TrialError("--rounds, --seconds and --rate are above 0")
    check_writable("--json", asked.json)
    load = Load(asked.seconds, asked.rate, asked.samples_rate, asked.features, asked.hidden)
    common = {"commit": commit(Path(__file__).parent), "machine": machine()}
    records: list[Record] = []
    for record in measure(asked.variant or [Variant.parse("")], load, asked.rounds):
        records.append(record | common)
        write_json(asked.json, records)
        mode = "on" if record["training"] else "off"
        line = f"{record['variant']}, training {mode}: p50 {1e3 * record['p50']:.2f} ms, "
        line += f"p99 {1e3 * record['p99']:.2f} ms, learner {record['learner_cpu_ratio']:.2f} CPU"
        print(line, file=sys.stderr, flush=True)
    show(tabulate(records), _summary(records))


def _variant(text: str) -> Variant:
    try:
        return Variant.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
