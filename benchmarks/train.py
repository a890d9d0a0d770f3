r"""Train the same network by several methods and write down what each one cost.

    python -m benchmarks.train --model mlp --data PATH --methods bp-fp32,ff-int8 --epochs 8 \
        --seeds 0,1,2 --json FILE

Each method and seed runs alone, in a child process of its own, one after the other: memory figures
then share no allocator and times share no cores. The JSON file holds a list of records, rewritten
after every child, so that a run that is cut short keeps what it has; `benchmarks/RECORDS.md` says
what a record is. A table comes last on standard output, then one JSON object in the last line.

Exit status: 0 done; 1 a trial failed (diverged, or its process died); 2 the command or the data
cannot be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import child
from benchmarks.datasets import DIGITS, Split, load_sources
from benchmarks.meter import commit
from benchmarks.report import as_table, summarize
from benchmarks.samples import DataError
from benchmarks.trial import DEFAULT_HIDDEN, METHOD_NAMES, SCHEDULES, Trial, TrialError
from engines.recipe import FUSION_NAMES
from models import MODEL_NAMES

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_TABLE_COLUMNS = 130

T = TypeVar("T")


class StoppedError(RuntimeError):
    """The run cannot go on.

    Args:
        message: One line for the user.
        exit_code: Status that the command ends with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage page."""

    def error(self, message: str) -> NoReturn:
        raise StoppedError(f"{message} (--help lists the options)", EXIT_USAGE)


def _listed(kind: Callable[[str], T], wanted: str) -> Callable[[str], tuple[T, ...]]:
    """A parser of comma-separated values."""

    def parse(text: str) -> tuple[T, ...]:
        try:
            return tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; wanted {wanted}") from None

    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m benchmarks.train",
        description="Train one network by several methods; write accuracy, time, memory, energy.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    integers = _listed(int, "integers with commas between")
    add = parser.add_argument
    add("--model", required=True, help=f"one of: {', '.join(MODEL_NAMES)}")
    add("--data", required=True, help="IDX or ImageFolder folder, .zip, or: digits")
    add(
        "--test",
        help="test set, any of these layouts; without it t10k-* files, else a fifth held out",
    )
    add(
        "--methods",
        type=_listed(str, "names"),
        default=METHOD_NAMES,
        help=f"with commas between, of: {', '.join(METHOD_NAMES)}",
    )
    add("--epochs", type=int, required=True, help="passes over the training samples")
    add("--seeds", type=integers, default=(0,), help="integers with commas between")
    add("--width", type=float, default=1.0, help="factor on hidden widths or channels")
    add("--limit", type=int, help="most training samples, drawn by seed; the test set stays whole")
    add("--json", type=Path, required=True, metavar="FILE", help="records go here; replaced")
    add("--hidden", type=integers, default=DEFAULT_HIDDEN, help="hidden widths of the mlp")
    add("--batch", type=int, default=128, help="samples per step")
    add("--learning-rate", type=float, default=1e-3, help="AdamW's largest")
    add("--schedule", default=SCHEDULES[0], help=f"of the rate, per step: {', '.join(SCHEDULES)}")
    add("--weight-decay", type=float, default=0.0, help="AdamW's, on weight matrices")
    add("--augment", action="store_true", help="crop by up to 4 pixels and mirror, at random")
    add(
        "--look-ahead",
        type=_listed(float, "two numbers, 0.2,1.6"),
        default=(0.2, 1.6),
        help="lambda in the first and last epoch",
    )
    add("--threads", type=int, help="threads of torch; without it torch's own choice")
    add(
        "--fusion",
        default=FUSION_NAMES[0],
        help=f"of the chains between INT8 products: {', '.join(FUSION_NAMES)}",
    )
    return parser.parse_args(argv)


def _trials(asked: argparse.Namespace) -> list[Trial]:
    """Every method for the first seed, then for the next: drift of the machine hits all alike."""
    if len(asked.look_ahead) != 2:
        raise TrialError(f"--look-ahead has {len(asked.look_ahead)} numbers; wanted first,last")
    for option, values in (("--methods", asked.methods), ("--seeds", asked.seeds)):
        if len(set(values)) < len(values):
            raise TrialError(f"{option} names one twice: {','.join(map(str, values))}")
    shared = {
        name: getattr(asked, name)
        for name in (
            "model", "data", "test", "epochs", "batch", "hidden", "width", "learning_rate",
            "schedule", "weight_decay", "augment", "look_ahead", "limit", "threads",
            "fusion",
        )
    }  # fmt: skip
    return [Trial(method=m, seed=seed, **shared) for seed in asked.seeds for m in asked.methods]


def _check_paths(asked: argparse.Namespace) -> None:
    """Refuse what would only fail after minutes."""
    for option, given in (("--data", asked.data), ("--test", asked.test)):
        if given not in (None, DIGITS) and not Path(given).exists():
            raise TrialError(f"{option} {given}: nothing is there; give a path or {DIGITS!r}")
    folder = asked.json.absolute().parent
    if asked.json.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TrialError(f"--json {asked.json}: wanted a file in a folder that can be written to")


@contextmanager
def _shown_progress(trials: int) -> Iterator[Callable[[Trial, child.Message], None]]:
    """What shows a child's messages: bars on a terminal, a line per epoch otherwise."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bars:
        whole = bars.add_task("trials", total=trials)
        steps = bars.add_task("loading", total=None)

        def show(trial: Trial, message: child.Message) -> None:
            name = f"{trial.method} seed {trial.seed}"
            if isinstance(message, child.Progress):
                bars.update(
                    steps, description=name, completed=message.steps_done, total=message.steps
                )
            elif isinstance(message, child.EpochDone):
                print(
                    f"{name}: epoch {message.epoch + 1}/{trial.epochs} loss {message.loss:.4f} "
                    f"accuracy {100 * message.accuracy:.2f} % after "
                    f"{message.train_seconds:.1f} s of training",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            elif isinstance(message, child.Finished):
                bars.advance(whole)
                bars.update(steps, description="loading", completed=0, total=None)

        yield show


def _run_child(
    trial: Trial, split: Split, show: Callable[[Trial, child.Message], None]
) -> dict[str, Any]:
    """One trial in a fresh process; its record without `commit`.

    Raises:
        StoppedError: The loss diverged, or the child ended without a record.
    """
    context = multiprocessing.get_context("spawn")  # fresh memory; a fork would inherit ours
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=child.serve_trial, args=(trial, split, sending), daemon=True)
    process.start()
    sending.close()
    try:
        return _await_record(trial, receiving, show)
    except EOFError:
        process.join()
        status = process.exitcode or 0
        how = f"status {status}; its traceback is above"
        if status < 0:
            how = f"signal {-status}; 9 is most often a lack of memory: lower --batch or --width"
        raise StoppedError(
            f"{trial.method} seed {trial.seed}: its process left no record and ended with {how}",
            EXIT_FAILED,
        ) from None
    except BaseException:
        process.terminate()
        raise
    finally:
        receiving.close()
        process.join()
        process.close()


def _await_record(
    trial: Trial, receiving: Connection, show: Callable[[Trial, child.Message], None]
) -> dict[str, Any]:
    while True:
        message: child.Message = receiving.recv()
        show(trial, message)
        if isinstance(message, child.Finished):
            return message.record
        if isinstance(message, child.Failed):
            raise StoppedError(message.message, EXIT_FAILED)


def _write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks.

    Raises:
        StoppedError: It cannot be done.
        TrialError: It cannot be understood, or does not fit the data.
        DataError: The data cannot be used.
    """
    asked = _arguments(argv)
    trials = _trials(asked)
    _check_paths(asked)
    sources = load_sources(asked.data, asked.test)
    trials[0].spec(sources.train.x.shape[1:], len(sources.train.classes))
    version = commit(Path(__file__).parent)
    records: list[dict[str, Any]] = []
    with _shown_progress(len(trials)) as show:
        for trial in trials:
            split = sources.split(seed=trial.seed, limit=trial.limit)
            record = _run_child(trial, split, show)
            after = ("machine", "settings")
            ends = {name: record.pop(name) for name in after}
            records.append(record | {"commit": version} | ends)
            _write_records(asked.json, records)
    first = records[0]
    title = (
        f"{first['model']} {first['settings']['hidden']} on {first['data']}: "
        f"{first['settings']['train_samples']} training and {first['settings']['test_samples']} "
        f"test samples ({first['settings']['test']}), {asked.epochs} epochs, batch {first['batch']}"
    )
    summaries = summarize(records)
    console = Console() if sys.stdout.isatty() else Console(width=_TABLE_COLUMNS)
    console.print(as_table(summaries, title))
    summary = {
        "model": first["model"],
        "data": first["data"],
        "epochs": asked.epochs,
        "records": len(records),
        "commit": version,
        "methods": summaries,
    }
    print(json.dumps(summary), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; one line on standard error and an exit status instead of a traceback."""
    try:
        run(argv)
    except StoppedError as error:
        message, status = str(error), error.exit_code
    except (TrialError, DataError, OSError) as error:
        message, status = str(error), EXIT_USAGE
    except KeyboardInterrupt:
        message, status = "interrupted; the records so far are written", EXIT_INTERRUPTED
    else:
        return 0
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
