r"""Train the same network by several methods and write down what each one cost.

    python -m benchmarks.train --model mlp --data PATH --methods bp-fp32,ff-int8 --epochs 8 \
        --seeds 0,1,2 --json FILE

Each method and seed runs alone, in a child process of its own, one after the other. The JSON file
holds a list of records; `benchmarks/RECORDS.md` says what a record is. A table comes last on
standard output, then one JSON object in the last line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import EXIT_FAILED, Parser, StoppedError, check_writable, finish, show
from benchmarks.datasets import load_sources
from benchmarks.options import (
    add_methods_and_seeds,
    add_trial_options,
    check_trial_options,
    trials_of,
)
from benchmarks.report import as_table, summarize
from benchmarks.runner import run_trials


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks.

    Raises:
        StoppedError: It cannot be done, or a loss diverged.
        TrialError: It cannot be understood, or does not fit the data.
        DataError: The data cannot be used.
    """
    parser = Parser(
        "python -m benchmarks.train",
        "Train one network by several methods; write accuracy, time, memory, energy.",
    )
    add_trial_options(parser)
    add_methods_and_seeds(parser)
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="records go here; replaced"
    )
    asked = parser.parse_args(argv)
    trials = trials_of(asked, [{"method": method} for method in asked.methods])
    check_trial_options(asked)
    check_writable("--json", asked.json)
    records = run_trials(trials, load_sources(asked.data, asked.test), asked.json)
    first = records[0]
    title = (
        f"{first['model']} {first['settings']['hidden']} on {first['data']}: "
        f"{first['settings']['train_samples']} training and {first['settings']['test_samples']} "
        f"test samples ({first['settings']['test']}), {asked.epochs} epochs, batch {first['batch']}"
    )
    summaries = summarize(records)
    summary = {
        "model": first["model"],
        "data": first["data"],
        "epochs": asked.epochs,
        "records": len(records),
        "commit": first["commit"],
        "methods": summaries,
    }
    show([as_table(summaries, title)], summary)
    diverged = [record["diverged"] for record in records if record["diverged"] is not None]
    if diverged:
        raise StoppedError("; ".join(diverged), EXIT_FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
