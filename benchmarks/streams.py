"""How the daemon's learner does on streams that change, beside what it could have been.

    python -m benchmarks.streams --data PATH --seeds 0,1,2 --json FILE

Streams: `benchmarks/stream_orders.py`; learners: `stream_learners.py`; figures: `stream_scores.py`. The
default memory is a tenth of the daemon's, so that a stream of some thousand samples does not fit into it;
all else is the daemon's default. Plots are written beside `--plot`, as far as there are such streams: `-classes`, `-matrix`, `-drift`,
`-imbalance`, and `-served`, what the gate lets serve. With `--keep` what FILE holds is not measured again.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import (
    Parser,
    add_output,
    finish,
    integers,
    names,
    plot_path,
    records_of,
    show,
    write_json,
)
from benchmarks.datasets import load_sources
from benchmarks.meter import commit, machine
from benchmarks.options import use_threads
from benchmarks.report import Record, grouped, spread
from benchmarks.stream_learners import FRESH, GDUMB, LEARNER_NAMES
from benchmarks.stream_orders import DRIFTING, STREAM_NAMES, open_stream
from benchmarks.stream_runs import run_stream
from benchmarks.stream_tables import tabulate
from benchmarks.streams_plot import draw_streams
from benchmarks.trial import TrialError
from daemon.config import LearnerSettings, ModelSettings
from engines.recipe import FUSION_NAMES


def measure(asked: argparse.Namespace) -> list[Record]:
    """A record for every stream, seed and learner; the file is rewritten after each."""
    _check(asked)
    use_threads(asked)
    sources = load_sources(asked.data, asked.test)
    model = ModelSettings(
        input_shape=sources.train.x.shape[1:],
        max_classes=len(sources.train.classes),
        hidden=asked.hidden,
    )
    common = {
        "data": Path(asked.data).name,
        "commit": commit(Path(__file__).parent),
        "machine": machine(),
    }
    records = _kept(asked)
    held = {(r["stream"], r["seed"], r["method"]): r for r in records}
    for name in asked.streams:
        for seed in asked.seeds:
            settings = _settings(asked, seed)
            split = sources.split(seed=seed)
            stream = open_stream(name, split, seed=seed, samples=asked.samples)
            fresh_level = None
            for learner in _learners(name, asked.learners):
                record = held.get((name, seed, learner))
                if record is None:
                    record = run_stream(
                        learner,
                        stream,
                        model.spec(),
                        settings,
                        serve=name in DRIFTING,
                        fresh_level=fresh_level,
                    )
                    record |= common | {"settings": _recorded(asked, settings, split.held_out)}
                    _say(record)
                    records.append(record)
                    write_json(asked.json, records)
                if learner == FRESH:
                    fresh_level = record["fresh_level"]
    return records


def _learners(stream: str, asked: Sequence[str]) -> Sequence[str]:
    """`fresh` first, whose level is a figure of the others."""
    if stream not in DRIFTING:
        return asked
    # What learns only where it is judged has no time in which to recover.
    return [FRESH, *(name for name in asked if name != GDUMB)]


def _kept(asked: argparse.Namespace) -> list[Record]:
    if not (asked.keep and asked.json.exists()):
        return []
    try:
        kept: list[Record] = json.loads(asked.json.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrialError(f"--keep: {asked.json} holds no records: {error}") from error
    return kept


def _say(record: Record) -> None:
    print(
        f"{record['stream']}, seed {record['seed']}, {record['method']}: accuracy "
        f"{100 * record['accuracy']:.2f} % after {record['train_seconds']:.1f} s of training",
        file=sys.stderr,
        flush=True,
    )


def _settings(asked: argparse.Namespace, seed: int) -> LearnerSettings:
    return LearnerSettings(
        seed=seed, replay_samples=asked.memory, fusion=asked.fusion, threads=asked.threads
    )


def _recorded(
    asked: argparse.Namespace, settings: LearnerSettings, held_out: bool
) -> dict[str, Any]:
    return {
        "hidden": [*asked.hidden],
        "block_samples": settings.block_samples,
        "steps_per_block": settings.steps_per_block,
        "batch_samples": settings.batch_samples,
        "new_ratio": settings.new_ratio,
        "learning_rate": settings.learning_rate,
        "look_ahead_weight": settings.look_ahead_weight,
        "masters": settings.masters,
        "fusion": settings.fusion,
        "test": "held-out fifth" if held_out else "test set",
    }


def _check(asked: argparse.Namespace) -> None:
    for option, known in (("streams", STREAM_NAMES), ("learners", LEARNER_NAMES)):
        unknown = [name for name in getattr(asked, option) if name not in known]
        if unknown:
            raise TrialError(f"--{option} {','.join(unknown)}: unknown; known: {', '.join(known)}")
    for option in ("streams", "learners", "seeds"):
        values = getattr(asked, option)
        if len(set(values)) < len(values):
            raise TrialError(f"--{option} names one twice: {','.join(map(str, values))}")
    for option in ("samples", "memory", "threads"):
        if getattr(asked, option) < 1:
            raise TrialError(f"--{option} is {getattr(asked, option)}; wanted at least 1")


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser(
        "python -m benchmarks.streams", "Streams: new classes, drift, imbalance; what is served."
    )
    add = parser.add_argument
    add("--data", required=True, help="as of benchmarks.train")
    add("--test", help="as of benchmarks.train")
    add("--streams", type=names, default=STREAM_NAMES, help="with commas between")
    add("--learners", type=names, default=LEARNER_NAMES, help="with commas between")
    add("--seeds", type=integers, default=(0, 1, 2), help="integers with commas between")
    add("--samples", type=int, default=6000, help="of a stream, at most")
    add("--memory", type=int, default=1000, help="samples; the daemon's default is 10,000")
    add("--hidden", type=integers, default=(500, 500, 500), help="widths of the mlp")
    add("--fusion", default="eager", choices=FUSION_NAMES, help="of chains between products")
    add("--keep", action="store_true", help="keep FILE's records, measure what it lacks of these")
    add("--threads", type=int, default=1, help="of torch")
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(measure, asked))
    summary = {
        stream: {
            method: spread([record["accuracy"] for record in group]).mean
            for method, group in grouped(chosen, lambda r: r["method"]).items()
        }
        for stream, chosen in grouped(records, lambda r: r["stream"]).items()
    }
    show(tabulate(records), {"records": len(records), "accuracy": summary})
    draw_streams(plot_path(asked), records)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
