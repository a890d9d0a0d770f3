"""What became of the rows of an import, and why some were refused."""

from __future__ import annotations

from dataclasses import dataclass, field

_REASONS_KEPT = 20


@dataclass
class Refusal:
    """A reason that rows were refused for.

    Args:
        name: Of the first of them.
        why: The reason.
        rows: How many.
    """

    name: str
    why: str
    rows: int = 1


@dataclass
class Tally:
    """What became of the rows.

    Args:
        rows: Read, those passed over included.
        skipped: Passed over: a run before this one had sent them.
        stored: Stored now.
        already: Sent, and the daemon had them.
        refused: Not stored, in this run and those before it.
        unlabelled: Sent in this run without a label.
        refusals: Reasons, the first of them: the first row's name, and how many rows.
        seconds: Taken by this run.
        notes: How the data set was understood, a line each.
    """

    rows: int = 0
    skipped: int = 0
    stored: int = 0
    already: int = 0
    refused: int = 0
    unlabelled: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def refuse(self, name: str, why: str) -> None:
        """Count a row that is not stored, by its reason."""
        self.refused += 1
        for refusal in self.refusals:
            if refusal.why == why:
                refusal.rows += 1
                return
        if len(self.refusals) < _REASONS_KEPT:
            self.refusals.append(Refusal(name, why))

    def refusal_lines(self) -> list[str]:
        """A line a reason, and one for what was refused beyond those kept or before this run."""
        lines = [
            f"refused: {one.name}{f' and {one.rows - 1:,} more' * (one.rows > 1)}: {one.why}"
            for one in self.refusals
        ]
        if others := self.refused - sum(one.rows for one in self.refusals):
            lines.append(f"... and {others:,} more, for other reasons or in a run before this one")
        return lines
