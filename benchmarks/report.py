"""From records to what a reader sees: one summary per method, and a table of them.

Figures of one method are means over its seeds; the deviation is that of a sample (n - 1), absent
for a single seed. Differences are taken against `bp-fp32` seed by seed, over the seeds that both
have, so that an easy or hard held-out part does not blur them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.trial import BASELINE

Record = dict[str, Any]

_AVERAGED = (
    "train_seconds", "step_milliseconds", "peak_training_bytes", "planned_training_bytes",
    "energy_joules",
)  # fmt: skip
_RATIOS = {
    "step_ratio": "step_milliseconds",
    "peak_ratio": "peak_training_bytes",
    "planned_ratio": "planned_training_bytes",
}
_ABSENT = "-"


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


def as_table(summaries: dict[str, dict[str, Any]], title: str) -> Table:
    """One row per method, the baseline's differences beside it.

    Args:
        summaries: What `summarize` gave.
        title: Put above, word for word.
    """
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    columns: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("accuracy %", _accuracy),
        ("points", lambda s: _shown(s["points"], "+.2f")),
        ("train s", lambda s: _shown(s["train_seconds"], ".1f")),
        ("step ms", lambda s: _shown(s["step_milliseconds"], ".2f")),
        ("ratio", lambda s: _shown(s["step_ratio"], ".2f")),
        ("peak MiB", lambda s: _shown(s["peak_training_bytes"], ".1f", 2**-20)),
        ("ratio", lambda s: _shown(s["peak_ratio"], ".2f")),
        ("live MiB", lambda s: _shown(s["planned_training_bytes"], ".1f", 2**-20)),
        ("ratio", lambda s: _shown(s["planned_ratio"], ".2f")),
        ("energy J", lambda s: _shown(s["energy_joules"], ".0f")),
        ("parameters", lambda s: _shown(s["parameters"], ",d")),
    )
    table.add_column("method", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for method, summary in summaries.items():
        table.add_row(method, *(show(summary) for _, show in columns))
    table.caption = Text(f"points and ratios: against {BASELINE}, seed by seed")
    table.caption_justify = "left"
    return table


def _accuracy(summary: dict[str, Any]) -> str:
    shown = f"{100 * summary['accuracy_mean']:.2f}"
    if summary["accuracy_deviation"] is not None:
        shown += f" \N{PLUS-MINUS SIGN} {100 * summary['accuracy_deviation']:.2f}"
    return shown


def _shown(value: float | None, form: str, factor: float | None = None) -> str:
    if value is None:
        return _ABSENT
    return format(value if factor is None else value * factor, form)
