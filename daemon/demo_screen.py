"""What the demonstration shows: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from daemon.demo import DemoState

_LINE_SECONDS = 2.0
_BARS = "▁▂▃▄▅▆▇█"
_BARS_SHOWN = 40


def open_screen(console: Console | None = None) -> Screen:
    """The screen for where standard output goes."""
    return Screen(console or Console())


class Screen:
    """Shows a demonstration; used as a context.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, state: DemoState, seconds: float) -> None:
        """The state now."""
        if self._console.is_terminal:
            self._live.update(_table(state, seconds))
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(_line(state, seconds))

    def result(self, result: dict[str, Any]) -> None:
        """The figures at the end."""
        table = Table("", "", show_header=False, title="what the daemon did")
        for name, value in result.items():
            shown = _percent(value) if name.endswith("accuracy") else str(value)
            table.add_row(name.replace("_", " "), shown)
        self._console.print(table)


def _table(state: DemoState, seconds: float) -> Table:
    table = Table("", "", show_header=False, title=f"ffedge learns digits, {seconds:.0f} s")
    recent = state.metric('ffedge_progressive_accuracy_ratio{window="recent"}')
    backlog = state.metric("ffedge_learner_backlog_samples")
    failed = state.predictions_failed
    table.add_row("samples acknowledged", f"{state.acknowledged} of {state.total}")
    table.add_row("samples to be learned", "unknown" if backlog is None else f"{backlog:.0f}")
    table.add_row("progressive accuracy, all", _percent(state.progressive_accuracy))
    table.add_row("progressive accuracy, newest 500", f"{_percent(recent)}  {_bars(state.history)}")
    table.add_row("hold-out accuracy, serving", _percent(state.holdout_accuracy))
    table.add_row("model version", str(state.count("ffedge_model_version")))
    table.add_row("swaps accepted / refused", f"{state.swaps_accepted} / {state.swaps_refused}")
    table.add_row("predictions answered", str(state.predictions))
    table.add_row("predictions failed", f"[{'red' if failed else 'green'}]{failed}[/]")
    return table


def _line(state: DemoState, seconds: float) -> str:
    return (
        f"{seconds:5.1f} s  samples {state.acknowledged:4d}"
        f"  progressive {_percent(state.progressive_accuracy)}"
        f"  hold-out {_percent(state.holdout_accuracy)}"
        f"  version {state.count('ffedge_model_version'):2d}"
        f"  swaps {state.swaps_accepted} accepted, {state.swaps_refused} refused"
        f"  predictions {state.predictions} answered, {state.predictions_failed} failed"
    )


def _percent(ratio: float | None) -> str:
    return "  -   " if ratio is None else f"{100 * ratio:5.1f} %"


def _bars(history: list[float]) -> str:
    shown = history[-_BARS_SHOWN:]
    return "".join(_BARS[min(len(_BARS) - 1, int(ratio * len(_BARS)))] for ratio in shown)
