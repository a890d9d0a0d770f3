"""Trials one after the other, each in a fresh child process: records out, progress on the way.

A trial alone in its process shares no allocator and no cores with another, so that memory and time
are its own. The file of records is rewritten after every trial: a run that is cut short keeps what
it has.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import child
from benchmarks.command import EXIT_FAILED, StoppedError, write_json
from benchmarks.datasets import Sources, Split
from benchmarks.meter import commit
from benchmarks.trial import Trial

Record = dict[str, Any]
Show = Callable[[Trial, child.Message], None]


def run_trials(
    trials: Sequence[Trial],
    sources: Sources,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Record]:
    """The record of every trial (`benchmarks/RECORDS.md`), in order.

    A trial whose loss diverges has a record that says so; the next one goes on.

    Args:
        trials: What to run.
        sources: The data of all of them.
        file: Where the records so far are kept; None: nowhere.
        environment: Variables that a child sees beside this process's own.

    Raises:
        StoppedError: A child ended without a record.
        TrialError: A trial does not fit the data.
    """
    for trial in trials:
        trial.spec(sources.train.x.shape[1:], len(sources.train.classes))
    version = commit(Path(__file__).parent)
    records: list[Record] = []
    with _shown_progress(len(trials)) as show:
        for trial in trials:
            split = sources.split(seed=trial.seed, limit=trial.limit)
            with _environment(environment or {}):
                record = run_child(trial, split, show)
            ends = {name: record.pop(name) for name in ("machine", "settings")}
            records.append(record | {"commit": version} | ends)
            if file is not None:
                write_json(file, records)
    return records


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables set in the block, for children that start in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _shown_progress(trials: int) -> Iterator[Show]:
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
            else:
                bars.advance(whole)
                bars.update(steps, description="loading", completed=0, total=None)

        yield show


def run_child(trial: Trial, split: Split, show: Show) -> Record:
    """One trial in a fresh process; its record without `commit`.

    Raises:
        StoppedError: The child ended without a record.
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


def _await_record(trial: Trial, receiving: Connection, show: Show) -> Record:
    while True:
        message: child.Message = receiving.recv()
        show(trial, message)
        if isinstance(message, child.Finished):
            return message.record
