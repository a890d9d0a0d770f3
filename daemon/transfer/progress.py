"""How far a transfer is: a bar on a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 2.0


class TransferProgress:
    """Shows rows done; used as a context.

    Args:
        console: Where to.
        title: What is done.
        done: Rows done before it began.
        total: Rows in all; None: not known.
    """

    def __init__(
        self, console: Console, title: str, done: int = 0, total: int | None = None
    ) -> None:
        self._console, self._title, self.total = console, title, total
        self._first, self._done = done, done
        self._refused: int | None = None
        self._began = self._shown = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[refused]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(
            title, total=total, completed=done, rate="", refused="", note=""
        )

    def __enter__(self) -> TransferProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, done: int, refused: int | None = None, waiting: str = "") -> None:
        """How far it is now, what was refused (None: nothing can be), and what it waits for."""
        self._done, self._refused = done, refused
        seconds = time.monotonic() - self._began
        rate = (done - self._first) / seconds if seconds else 0.0
        note = f"waiting: {waiting}" if waiting else ""
        told = "" if refused is None else f"refused {refused}"
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                total=self.total,
                completed=done,
                rate=f"{rate:,.0f}/s",
                refused=told,
                note=note,
            )
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(self._line(seconds, rate, f"{told}  {note}"))

    def wait(self, why: str) -> None:
        """It does not go on for now."""
        self.show(self._done, self._refused, why)

    def _line(self, seconds: float, rate: float, note: str) -> str:
        of = f" of {self.total:,}" if self.total else ""
        left = f"  {(self.total - self._done) / rate:,.0f} s left" if self.total and rate else ""
        return (
            f"{self._title} {seconds:6.1f} s  {self._done:,}{of}  {rate:,.0f}/s{left}  {note}"
        ).rstrip()
