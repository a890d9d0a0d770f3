"""The tables of `benchmarks.streams`: a row a stream and learner, a table a kind of stream."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Group

from benchmarks.report import ABSENT, Record, grouped, table
from benchmarks.stream_learners import OURS
from benchmarks.stream_orders import CLASS_INCREMENTAL, DRIFTING, IMBALANCED
from benchmarks.stream_scores import LEVEL_SAMPLES, WINDOW

_RAREST = 3
Show = Callable[[Sequence[Record]], str]


def tabulate(records: Sequence[Record]) -> list[Group]:
    """A table for each kind of stream that there are records of."""
    tables = (
        (CLASS_INCREMENTAL, "Class-incremental streams", _CLASS_COLUMNS, _CLASS_CAPTION),
        (DRIFTING, "Drifting streams", _DRIFT_COLUMNS, _DRIFT_CAPTION),
        (IMBALANCED, "Imbalanced streams", _IMBALANCE_COLUMNS, _IMBALANCE_CAPTION),
    )
    found = []
    for names, title, columns, caption in tables:
        chosen = [record for record in records if record["stream"] in names]
        if not chosen:
            continue
        rows = [
            (f"{stream}: {method}", *(show(group) for _, show in columns))
            for (stream, method), group in grouped(
                chosen, lambda r: (r["stream"], r["method"])
            ).items()
        ]
        headings = ("stream: learner", *(heading for heading, _ in columns))
        found.append(table(f"{title}: {setting(chosen)}", headings, rows, caption))
    served = [record for record in records if record["served"]]
    return [*found, _served(served)] if served else found


def setting(records: Sequence[Record]) -> str:
    """What the records have in common, for a title."""
    first = records[0]
    seeds = len({record["seed"] for record in records})
    hidden = "-".join(map(str, first["settings"]["hidden"]))
    return (
        f"{first['model']} {hidden} on {first['data']}, memory of {first['memory']} samples, "
        f"{seeds} seed{'s' if seeds > 1 else ''}"
    )


def stated(values: Sequence[float | None], form: str = ".1f", factor: float = 100.0) -> str:
    """Mean and deviation of those that there are; how many, where not all."""
    known = [factor * value for value in values if value is not None]
    if not known:
        return ABSENT
    text = format(statistics.fmean(known), form)
    if len(known) > 1:
        text += f" \N{PLUS-MINUS SIGN} {format(statistics.stdev(known), form)}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _field(name: str, form: str = ".1f", factor: float = 100.0) -> Show:
    return lambda records: stated([record.get(name) for record in records], form, factor)


def _recovery(name: str) -> Show:
    def show(records: Sequence[Record]) -> str:
        if records[0]["level_before" if name == "recovery_samples" else "fresh_level"] is None:
            return ABSENT
        values = [record[name] for record in records]
        return stated(values, ".0f", 1.0) if any(values) else "never"

    return show


def alarm_after(record: Record) -> int | None:
    """Samples after the last change until the learner noticed a drift."""
    later: list[int] = [place for place in record["alarms"] if place > record["change"]]
    return later[0] - record["change"] if later else None


def _alarm(records: Sequence[Record]) -> str:
    if records[0]["method"] != OURS:
        return ABSENT
    values = [alarm_after(record) for record in records]
    return stated(values, ".0f", 1.0) if any(values) else "none"


def old_concept(record: Record) -> float:
    """Accuracy at the end on the concept that is no longer present."""
    left: float = record["accuracy_matrix"][-1][1 - record["present"][-1]]
    return left


def rarest_accuracy(record: Record) -> float:
    """Mean accuracy of the classes that came least often."""
    rarest = np.argsort(record["class_samples"], kind="stable")[:_RAREST]
    return float(np.take(record["class_accuracy"], rarest).mean())


def _served(records: Sequence[Record]) -> Group:
    rows = []
    for stream, group in grouped(records, lambda r: r["stream"]).items():
        for gate in group[0]["served"]:
            arms = [record["served"][gate] for record in group]
            accepted = [
                decisions.count("accepted") / len(decisions)
                for decisions in (arm["decisions"] for arm in arms)
                if decisions
            ]
            rows.append(
                (
                    f"{stream}: {gate}",
                    stated([arm["accuracy"] for arm in arms]),
                    stated(accepted) if accepted else ABSENT,
                    _recovery("recovery_samples")(arms),
                    _recovery("recovery_to_fresh_samples")(arms),
                )
            )
    return table(
        f"What is served: {setting(records)}",
        ("stream: gate", "answers right %", "accepted %", "recovery", "to fresh's level"),
        rows,
        "each block answered by the version that serves, before it is learned; learning is the "
        "same in all rows of a stream; no gate: whatever was learned serves; recovery as above",
    )


_COST: tuple[tuple[str, Show], ...] = (
    ("steps", _field("steps", ".0f", 1.0)),
    ("train s", _field("train_seconds", ".1f", 1.0)),
)
_CLASS_COLUMNS: tuple[tuple[str, Show], ...] = (
    ("accuracy %", _field("accuracy")),
    ("average %", _field("average_accuracy")),
    ("forgetting, points", _field("forgetting")),
    ("progressive %", _field("progressive_accuracy")),
    *_COST,
)
_CLASS_CAPTION = (
    "mean and deviation over seeds; accuracy: of all test samples at the end; average: over the "
    "classes seen so far, after each task; train s of ours: its store and its own scores with it"
)
_DRIFT_COLUMNS: tuple[tuple[str, Show], ...] = (
    ("accuracy %", _field("accuracy")),
    ("other concept %", lambda records: stated([*map(old_concept, records)])),
    ("progressive %", _field("progressive_accuracy")),
    ("faded %", _field("faded_accuracy")),
    ("level before %", _field("level_before")),
    ("alarm", _alarm),
    ("recovery", _recovery("recovery_samples")),
    ("to fresh's level", _recovery("recovery_to_fresh_samples")),
    *_COST,
)
_DRIFT_CAPTION = (
    "accuracy: at the end, on test samples of the concept that is present then; alarm: samples "
    "after the last change until the learner noticed a drift; recovery: samples after the last "
    f"change until {WINDOW} of them in a row are answered as well as the last {LEVEL_SAMPLES} "
    f"before it, less 2 points; to fresh's level: as well as the last {LEVEL_SAMPLES} of a learner "
    "that began at the change; (k of n): in k seeds of n"
)
_IMBALANCE_COLUMNS: tuple[tuple[str, Show], ...] = (
    ("accuracy %", _field("accuracy")),
    ("macro %", _field("macro_accuracy")),
    (f"{_RAREST} rarest %", lambda records: stated([*map(rarest_accuracy, records)])),
    ("worst class %", lambda records: stated([min(r["class_accuracy"]) for r in records])),
    ("progressive %", _field("progressive_accuracy")),
    *_COST,
)
_IMBALANCE_CAPTION = (
    "accuracy: of all test samples, whose classes are about as many; macro: mean over classes; "
    f"{_RAREST} rarest: of the classes that came least often"
)
