"""Refused rows by their reason: equal ones in one line, every one counted."""

from daemon.transfer.tally import Refusal, Tally


def test_equal_reasons_are_one_line():
    tally = Tally()
    for n in range(1, 1001):
        tally.refuse(f"line {n}", "is odd" if n % 2 else "is even")
    assert tally.refusals == [Refusal("line 1", "is odd", 500), Refusal("line 2", "is even", 500)]
    tally.refuse("line 1001", "is last")
    assert tally.refusal_lines() == [
        "refused: line 1 and 499 more: is odd",
        "refused: line 2 and 499 more: is even",
        "refused: line 1001: is last",
    ]


def test_reasons_beyond_those_kept_are_counted():
    tally = Tally()
    for n in range(50):
        tally.refuse(f"line {n}", f"reason {n % 25}")
    *lines, last = tally.refusal_lines()
    assert len(lines) == 20
    assert last == "... and 10 more, for other reasons or in a run before this one"
