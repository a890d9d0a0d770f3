r"""Training steps of several methods, timed in turn in one process on the same data.

    python -m benchmarks.steps --model resnet8 --width 1 --batch 32 \
        --methods bp-fp32,bp-gdai8-like,ff-int8 --rounds 7 --json FILE

All methods are built and warmed up, compilers included; then, round by round, each takes some
steps, another one first in each round. A round gives the median of a method's steps, and its ratio
to another method's of the same round: what a neighbour on the machine does to one, it does to both.
Reported are median and range over the rounds.

A step is everything from a batch of pixels to changed weights: standardisation, forward pass,
gradients, optimizer. Look-ahead is on, with `--look-ahead` throughout. The data are made up unless
`--data` names some; what they are does not change what is computed. The searches that `bp-ui8` and
`bp-gdai8-like` make every 100 steps hardly move a median: they are given away.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from benchmarks.command import Parser, check_writable, finish, names, show, write_json
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
from benchmarks.report import ABSENT, Record, Spread, spread, table
from benchmarks.samples import Samples
from benchmarks.trial import BASELINE, Trial, TrialError

REFERENCES = (BASELINE, "bp-gdai8-like")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_BATCHES = 4


def add_step_options(parser: Parser) -> None:
    """How steps are timed."""
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="each gives one ratio a method")
    add("--steps", type=int, default=5, help="of each method in a round")
    add("--warm-up", type=int, default=3, help="steps of each method before the first round")
    add("--clock", choices=[*CLOCKS], default="wall", help="cpu: of all threads of the process")


def timing_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What `add_step_options` added, as `measure` takes it.

    Raises:
        TrialError: Nothing would be timed.
    """
    for name in ("rounds", "steps"):
        if getattr(asked, name) < 1:
            raise TrialError(f"--{name} is {getattr(asked, name)}; wanted at least 1")
    return {name: getattr(asked, name) for name in ("rounds", "steps", "warm_up", "clock")}


def measure(
    trials: Mapping[str, Trial],
    train: Samples,
    *,
    rounds: int,
    steps: int,
    warm_up: int,
    clock: str,
) -> dict[str, Record]:
    """Time the steps of several contestants.

    Args:
        trials: Name to what it trains; a batch size may differ.
        train: Samples that all of them are shown; at least a batch.
        rounds: How many.
        steps: Of each contestant in a round.
        warm_up: Steps of each before the first round.
        clock: One of `CLOCKS`.

    Returns:
        Name to `settings`, `parameters`, `first_step_seconds` and `milliseconds`, one median a
        round.
    """
    from benchmarks.methods import METHODS

    contestants: dict[str, Callable[[], object]] = {}
    found: dict[str, Record] = {}
    for name, trial in trials.items():
        spec = trial.spec(train.x.shape[1:], len(train.classes))
        method = METHODS[trial.method](trial, spec, train)
        method.start_step(trial.epochs / 2)
        if method.settings.get("fusion") == "compiled":
            print(
                f"{name}: compiling its chains, seconds to minutes; --fusion eager does without",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        take = contestants[name] = partial(_next_step, method.step, _batches(train, trial.batch))
        seconds = [_timed(take, CLOCKS["wall"]) for _ in range(max(1, warm_up))]
        found[name] = {
            "settings": method.settings,
            "parameters": method.parameters,
            "first_step_seconds": round(seconds[0], 3),
        }
        print(f"{name}: first step {seconds[0]:.1f} s", file=sys.stderr, flush=True)
    timed = time_rounds(contestants, rounds, steps, CLOCKS[clock])
    return {
        name: record | {"milliseconds": [round(1e3 * value, 4) for value in timed[name]]}
        for name, record in found.items()
    }


def _batches(train: Samples, batch: int) -> list[tuple[Any, Any]]:
    """A few batches of `train`, from its start over and over."""
    rows = np.arange(_BATCHES * batch).reshape(_BATCHES, batch) % len(train)
    taken = [train.take(one).floats(batch) for one in rows]
    return [(one.x, one.labels) for one in taken]


def _next_step(step: Callable[[Any, Any], float], batches: list[tuple[Any, Any]]) -> None:
    batches.append(batches.pop(0))
    step(*batches[0])


def _timed(take: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    take()
    return clock() - began


def time_rounds(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    steps: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Each contestant's median time of a step in each round, in seconds.

    Args:
        contestants: Name to what takes one step.
        rounds: How many; another contestant begins in each.
        steps: Of each contestant in a round, one after the other.
        clock: Seconds from anywhere.
    """
    medians: dict[str, list[float]] = {name: [] for name in contestants}
    order = [*contestants]
    for _ in range(rounds):
        for name in order:
            times = [_timed(contestants[name], clock) for _ in range(steps)]
            medians[name].append(statistics.median(times))
        order.append(order.pop(0))
    return medians


def ratio(timed: Mapping[str, Record], method: str, reference: str) -> Spread | None:
    """A method's time over another's, round by round; None for itself or where one is not there."""
    if method == reference or not {method, reference} <= timed.keys():
        return None
    pairs = zip(timed[method]["milliseconds"], timed[reference]["milliseconds"], strict=True)
    return spread([own / other for own, other in pairs])


def tabulate(record: Record) -> Group:
    """A row a method."""
    timed = record["methods"]
    rows = []
    for method, found in timed.items():
        row = [method, spread(found["milliseconds"]).text(".2f")]
        for reference in REFERENCES:
            own = ratio(timed, method, reference)
            faster = ratio(timed, reference, method)
            row.append(ABSENT if own is None else own.text(".2f"))
            row.append(ABSENT if faster is None else faster.text(".2f"))
        rows.append(row)
    headings = [part for name in REFERENCES for part in (f"of {name}", "times as fast")]
    return table(
        f"step time of {record['model']} {record['hidden'] or ''} at width {record['width']:g}, "
        f"input {record['input_shape']}, batch {record['batch']}, "
        f"{record['machine']['threads']} threads, {record['clock']} clock",
        ("method", "step ms", *headings),
        rows,
        f"median and range over {record['rounds']} rounds of {record['steps']} steps a method",
    )


def measured(asked: argparse.Namespace) -> Record:
    """The record of one network under several methods.

    Args:
        asked: The trial's options, `methods`, and those of `add_step_options`.
    """
    check_trial_options(asked)
    use_threads(asked)
    timing = timing_of(asked)
    trials = {method: trial_of(asked, method=method) for method in asked.methods}
    train = sources_of(asked, _BATCHES * asked.batch).train
    spec = trials[asked.methods[0]].spec(train.x.shape[1:], len(train.classes))
    return {
        "model": asked.model,
        "width": asked.width,
        "hidden": list(spec.hidden),
        "input_shape": list(spec.input_shape),
        "data": Path(asked.data).name,
        "batch": asked.batch,
        **timing,
        "commit": commit(Path(__file__).parent),
        "methods": measure(trials, train, **timing),
        "machine": machine(),
    }


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.steps", "Time training steps of several methods in turn.")
    add_trial_options(
        parser,
        leave_out=("test", "limit", "augment", "schedule", "products"),
        model="mlp", data=MADE_UP, epochs=2, batch=32, look_ahead=(0.5, 0.5),
    )  # fmt: skip
    parser.add_argument(
        "--methods", type=names, default=(*REFERENCES, "ff-int8"), help="names with commas between"
    )
    add_shape_options(parser)
    add_step_options(parser)
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="the record goes here; replaced"
    )
    asked = parser.parse_args(argv)
    check_writable("--json", asked.json)
    record = measured(asked)
    write_json(asked.json, [record])
    ratios = {
        f"{method}/{reference}": own._asdict()
        for method in record["methods"]
        for reference in REFERENCES
        if (own := ratio(record["methods"], method, reference)) is not None
    }
    show([tabulate(record)], {"model": record["model"], "ratios": ratios})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
