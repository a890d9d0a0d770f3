"""From records to what a reader sees: one summary per method, and a table of them.

Figures of one method are means over its seeds; the deviation is that of a sample (n - 1), absent
for a single seed. Differences are taken against `bp-fp32` seed by seed, over the seeds that both
have, so that an easy or hard held-out part does not blur them.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.trial import BASELINE, INT8_UNITS

Record = dict[str, Any]
K = TypeVar("K", bound=Hashable)

_AVERAGED = (
    "train_seconds", "step_milliseconds", "peak_training_bytes", "planned_training_bytes",
    "energy_joules",
)  # fmt: skip
_RATIOS = {
    "step_ratio": "step_milliseconds",
    "peak_ratio": "peak_training_bytes",
    "planned_ratio": "planned_training_bytes",
}
ABSENT = "-"
_CAPTION_COLUMNS = 120


class Spread(NamedTuple):
    """Several measurements of one thing."""

    mean: float
    median: float
    low: float
    high: float

    def text(self, form: str, factor: float = 1.0) -> str:
        """`median (low to high)`, each in format `form` after multiplying by `factor`."""
        middle, low, high = (
            format(factor * value, form) for value in (self.median, self.low, self.high)
        )
        return middle if low == high else f"{middle} ({low} to {high})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.fmean(values), statistics.median(values), min(values), max(values))


def grouped(records: Sequence[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by what `key` says of them, in the order of first appearance."""
    groups: dict[K, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def ratios(records: Sequence[Record], field: str, method: str, reference: str) -> Spread | None:
    """A method's `field` over that of `reference`, seed by seed.

    Args:
        records: All of one network, data set and recipe.
        field: Of a record, a number or None.
        method: In the numerator.
        reference: In the denominator.

    Returns:
        None where no seed has both figures.
    """
    base = {r["seed"]: r[field] for r in records if r["method"] == reference}
    own = {r["seed"]: r[field] for r in records if r["method"] == method}
    found = [own[seed] / base[seed] for seed in own if own[seed] and base.get(seed)]
    return spread(found) if found else None


def setting(records: Sequence[Record]) -> str:
    """What records of one network and recipe have in common, for a title."""
    first, seeds = records[0], len({record["seed"] for record in records})
    counts = ", ".join(
        f"{count} {what}{'s' if count > 1 else ''}"
        for what, count in (("epoch", first["epochs"]), ("seed", seeds))
    )
    width = "" if first["width"] == 1 else f" at width {first['width']:g}"
    stand_in = first["settings"].get("products", INT8_UNITS)
    products = "" if stand_in == INT8_UNITS else f", products {stand_in}"
    return f"{first['model']}{width} on {first['data']}, batch {first['batch']}, {counts}{products}"


def diverged(records: Sequence[Record]) -> str:
    """Which of them diverged, to put behind a caption; empty where none did."""
    names = [f"{r['method']} seed {r['seed']}" for r in records if r["diverged"]]
    return f"; diverged: {', '.join(names)}" if names else ""


def summarize(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Method name to its figures, in the order of first appearance.

    Args:
        records: All of one model, data set and recipe.

    Returns:
        Per method: `seeds`, `parameters`, `accuracy_mean` and `accuracy_deviation` (fractions),
        means of `train_seconds`, `step_milliseconds`, `peak_training_bytes`,
        `planned_training_bytes` and `energy_joules` (None where a record lacks the figure), and
        against the baseline, None without one: `points` (percentage points of accuracy),
        `step_ratio`, `peak_ratio` and `planned_ratio`.
    """
    methods = list(dict.fromkeys(record["method"] for record in records))
    return {method: _summary(method, records) for method in methods}


def _summary(method: str, records: Sequence[Record]) -> dict[str, Any]:
    own = {r["seed"]: r for r in records if r["method"] == method}
    base = {r["seed"]: r for r in records if r["method"] == BASELINE}
    accuracies = [record["accuracy"] for record in own.values()]
    summary: dict[str, Any] = {
        "seeds": list(own),
        "parameters": next(iter(own.values()))["parameters"],
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }
    for field in _AVERAGED:
        summary[field] = _mean([record[field] for record in own.values()])
    pairs = [(own[seed], base[seed]) for seed in own if seed in base] if method != BASELINE else []
    summary["points"] = _mean([100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs])
    for name, field in _RATIOS.items():
        summary[name] = _mean(
            [a[field] / b[field] if a[field] and b[field] else None for a, b in pairs]
        )
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def as_table(summaries: dict[str, dict[str, Any]], title: str) -> Group:
    """One row per method, the baseline's differences beside it.

    Args:
        summaries: What `summarize` gave.
        title: Put above, word for word.
    """
    columns: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("accuracy %", accuracy),
        ("points", lambda s: shown(s["points"], "+.2f")),
        ("train s", lambda s: shown(s["train_seconds"], ".1f")),
        ("step ms", lambda s: shown(s["step_milliseconds"], ".2f")),
        ("ratio", lambda s: shown(s["step_ratio"], ".2f")),
        ("peak MiB", lambda s: shown(s["peak_training_bytes"], ".1f", 2**-20)),
        ("ratio", lambda s: shown(s["peak_ratio"], ".2f")),
        ("live MiB", lambda s: shown(s["planned_training_bytes"], ".1f", 2**-20)),
        ("ratio", lambda s: shown(s["planned_ratio"], ".2f")),
        ("energy J", lambda s: shown(s["energy_joules"], ".0f")),
        ("parameters", lambda s: shown(s["parameters"], ",d")),
    )
    return table(
        title,
        ("method", *(heading for heading, _ in columns)),
        [
            (method, *(show(summary) for _, show in columns))
            for method, summary in summaries.items()
        ],
        f"points and ratios: against {BASELINE}, seed by seed",
    )


def table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> Group:
    """A table of texts, all columns but the first to the right.

    Args:
        title: Put above, word for word.
        headings: One a column.
        rows: As many texts each.
        caption: Put below.
    """
    made = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, row))
    # As lines of their own: rich would break those of a table at its width.
    return Group(Text(title), made, Text(textwrap.fill(caption, _CAPTION_COLUMNS)))


def accuracy(summary: dict[str, Any]) -> str:
    """Mean and deviation of what `summarize` gave for one method, in %."""
    shown = f"{100 * summary['accuracy_mean']:.2f}"
    if summary["accuracy_deviation"] is not None:
        shown += f" \N{PLUS-MINUS SIGN} {100 * summary['accuracy_deviation']:.2f}"
    return shown


def shown(value: float | None, form: str, factor: float | None = None) -> str:
    """A figure in format `form`, after multiplying by `factor`; `-` where there is none."""
    if value is None:
        return ABSENT
    return format(value if factor is None else value * factor, form)
