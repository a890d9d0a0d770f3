"""How far a transfer is, told on a terminal and off it."""

import io
import types

import pytest
from rich.console import Console

from daemon.transfer import progress
from daemon.transfer.progress import TransferProgress


def test_off_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    with TransferProgress(Console(file=out, width=40), "CSV a.csv", 1000, 9000) as shown:
        for second in range(5):
            now = 100.0 + second
            shown.show(1000 + 1000 * second, refused=second)
        now = 110.0
        shown.wait("the [disk] is full")
    assert out.getvalue().splitlines() == [
        "CSV a.csv    2.0 s  3,000 of 9,000  1,000/s  6 s left  refused 2",
        "CSV a.csv    4.0 s  5,000 of 9,000  1,000/s  4 s left  refused 4",
        "CSV a.csv   10.0 s  5,000 of 9,000  400/s  10 s left  refused 4  "
        "waiting: the [disk] is full",
    ]


def test_off_a_terminal_what_is_not_known_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    with TransferProgress(Console(file=out), "export a.npz") as shown:
        now = 3.0
        shown.show(600)
    assert out.getvalue() == "export a.npz    3.0 s  600  200/s\n"


def test_on_a_terminal_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with TransferProgress(console, "CSV a.csv", 0, 9000) as shown:
        shown.note("shape [2] becomes [1, 2]")
        shown.show(4500, refused=7)
        shown.wait("it is busy")
    text = out.getvalue()
    assert "shape [2] becomes [1, 2]" in text
    assert "4500/9000" in text
    assert "refused 7" in text
    assert "waiting: it is busy" in text
