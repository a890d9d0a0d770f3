r"""How fast the daemon takes samples, each acknowledged once it is durable.

    python -m benchmarks.ingest --json FILE
    python -m benchmarks.ingest --json FILE --parts closed,open --seconds 20 --rounds 5

A real `ffedge serve` on loopback, its store in a temporary folder, is loaded by a client process on
the same machine (`ingest_client.py`), part by part:

    closed      single samples, the next as soon as one is answered: the most a second
    open        single samples at planned times: latency, from the planned time
    batch       batches: samples a second
    overload    planned times at three times what `closed` reaches: what is refused, and how
    fill        a million samples: filling, starting, pages, a replay batch; batches in turn with an
                empty store
    wear        bytes written to a loop device for each byte of features; needs root

The first three also with every fsync delayed (`slow_fsync.c`, needs a C compiler), as a disk of a
virtual machine is faster than a board's. The learner waits meanwhile, unless `--learning`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from benchmarks.command import (
    Parser,
    add_output,
    finish,
    names,
    numbers,
    plot_path,
    records_of,
    show,
)
from benchmarks.ingest_parts import PARTS
from benchmarks.ingest_plot import draw_ingest
from benchmarks.ingest_requests import FORMS
from benchmarks.meter import commit, machine
from benchmarks.report import ABSENT, Record, grouped, shown, spread, table
from benchmarks.trial import TrialError


def measure(asked: argparse.Namespace) -> list[Record]:
    """All records, part after part.

    Raises:
        TrialError: The daemon or its client fails, or a tool is missing.
    """
    common = {
        "features": asked.features,
        "form": asked.form,
        "connections": asked.connections,
        "learning": asked.learning,
        "commit": commit(Path(__file__).parent),
        "machine": machine(),
    }
    records = []
    for part in asked.parts:
        for record in PARTS[part](asked):
            records.append(record | common)
            print(f"{part}: {_outline(record)}", file=sys.stderr, flush=True)
    return records


def _outline(record: Record) -> str:
    wanted = ("posts_per_second", "samples_per_second", "p50", "p99", "ready_seconds")
    return ", ".join(f"{name} {record[name]}" for name in wanted if record.get(name) is not None)


def tabulate(records: Sequence[Record]) -> list[Group]:
    """A table of loads, and one of the large store where it was measured."""
    loads = grouped(
        [r for r in records if "p99" in r],
        lambda r: (r["part"], r.get("load", ""), r.get("fsync_milliseconds", 0.0)),
    )
    rows = []
    for (part, load, delay), group in loads.items():
        refused = [sum(v for k, v in r["statuses"].items() if k in ("429", "503")) for r in group]
        row = [f"{part} {load}".strip(), shown(delay, "g")]
        for field, form, factor in (
            ("posts_per_second", ",.0f", 1.0),
            ("samples_per_second", ",.0f", 1.0),
            ("p50", ".2f", 1e3),
            ("p99", ".2f", 1e3),
            ("p999", ".2f", 1e3),
            ("cpu_microseconds_per_post", ".0f", 1.0),
            ("lag_p99", ".2f", 1e3),
        ):
            values = [r[field] for r in group if r[field] is not None]
            row.append(spread(values).text(form, factor) if values else ABSENT)
        rows.append([*row, spread(refused).text(",.0f")])
    headings = (
        "part", "fsync + ms", "posts/s", "samples/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU us/post",
        "client late ms", "refused",
    )  # fmt: skip
    tables = []
    if rows:
        text = "median and range over rounds; client late: p99 of how late it sent"
        tables.append(table("ingest, acknowledged as durable", headings, rows, text))
    figures = [(name, value) for record in records for name, value in _figures(record)]
    if figures:
        rows = [[name, spread(values).text(".2f")] for name, values in _gathered(figures).items()]
        tables.append(table("large store, and wear", ("figure", "value"), rows, "median and range"))
    return tables


def _figures(record: Record) -> list[tuple[str, float]]:
    part = record["part"]
    if part == "full":
        pages = record["page_milliseconds"].items()
        return [
            ("start to ready s", record["ready_seconds"]),
            *((f"page ms, {name}", value) for name, value in pages),
            ("counts ms", record["counts_milliseconds"]),
            ("metrics ms", record["metrics_milliseconds"]),
            ("replay batch ms", record["replay_batch_milliseconds"]),
        ]
    if part == "full_and_empty":
        rates = record["samples_per_second"]
        return [
            ("start to ready s, empty", record["empty_ready_seconds"]),
            ("rate, full / empty", rates["full"] / rates["empty"]),
        ]
    if part == "overload":
        return [("goodput / capacity", record["posts_per_second"] / record["capacity"])]
    if part == "wear":
        ratio = record["device_bytes_per_payload_byte"]
        return [
            (f"device bytes / payload, {record['load']}", ratio),
            (f"samples a commit, {record['load']}", record["samples"] / record["commits"]),
        ]
    return []


def _gathered(figures: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, value in figures:
        found.setdefault(name, []).append(value)
    return found


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.ingest", "Load a daemon with samples.")
    add = parser.add_argument
    known = ", ".join(PARTS)
    add("--parts", type=names, default=tuple(PARTS), help=f"with commas between: {known}")
    add("--seconds", type=float, default=10.0, help="of load in each round")
    add("--rounds", type=int, default=3, help="of each part")
    add("--rate", type=float, default=1000.0, help="posts a second of part open, and of wear")
    add("--connections", type=int, default=64, help="of single posts; open loop: at most")
    add("--features", type=int, default=784, help="values a sample, 0 to 255")
    add("--batch", type=int, default=256, help="samples a batch")
    add("--form", choices=[*FORMS], default="binary", help="of batches")
    add("--batch-connections", type=int, default=4, help="that post batches")
    add("--samples", type=int, default=1_000_000, help="of part fill")
    add("--fsync-delays", type=numbers, default=(0.0, 5.0), help="ms with commas between")
    add("--learning", action="store_true", help="closed, open, batch: the learner learns meanwhile")
    add("--folder", default=tempfile.gettempdir(), help="for the stores; on the disk in question")
    add_output(parser)
    asked = parser.parse_args(argv)
    unknown = set(asked.parts) - PARTS.keys()
    if unknown or asked.rounds < 1 or asked.seconds <= 0:
        raise TrialError(f"--parts are of {known}; --rounds and --seconds are above 0")
    records = records_of(asked, lambda: measure(asked))
    draw_ingest(plot_path(asked), records)
    show(tabulate(records), _summary(records))


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    figures = _gathered([pair for record in records for pair in _figures(record)])
    loads = grouped(
        [r for r in records if "p99" in r],
        lambda r: (
            f"{r['part']} {r.get('load', '')}".strip()
            + (f" fsync+{r['fsync_milliseconds']:g}ms" if r.get("fsync_milliseconds") else "")
        ),
    )
    return {
        "loads": {
            name: {
                "samples_per_second": spread([r["samples_per_second"] for r in group]).median,
                "p99_seconds": spread([r["p99"] for r in group]).median,
            }
            for name, group in loads.items()
        },
        "figures": {name: spread(values).median for name, values in figures.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
