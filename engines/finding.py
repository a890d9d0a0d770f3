"""One line of a self-examination: what was looked at, how it stands, what was found."""

from __future__ import annotations

import dataclasses
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        name: What was looked at.
        verdict: `PASS`; `WARN`: works, worth knowing; `FAIL`: does not work; `SKIP`: not here.
        found: What was found, and where it is not as wanted: what was wanted, what to do.
    """

    name: str
    verdict: Verdict
    found: str

    def __str__(self) -> str:
        return f"{self.verdict} {self.name}: {self.found}"
