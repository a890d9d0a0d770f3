"""From a period's readings to what the learner may do, and why. No clock and no threads.

Two kinds of reason. *Limits* are felt through what learning does to the machine, and move the duty
up and down (`duty.py`). *Gates* are open or closed: budgets, hours, an operator. Behind a closed
one the duty is kept and has no effect.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon.config import GovernorSettings
from daemon.governor.budget import Budget
from daemon.governor.duty import DutyControl
from daemon.governor.hours import Hours
from daemon.governor.limits import limits
from daemon.governor.readings import Readings
from daemon.governor.rules import Finding, Level, Reason


@dataclass(frozen=True)
class Measured:
    """A limit that is set, and what is read of it now.

    Args:
        name: Its key in `[governor]`.
        limit: In its own unit.
        value: Likewise; None: there is no reading now.
    """

    name: str
    limit: float
    value: float | None


@dataclass(frozen=True)
class State:
    """What learning may do.

    Args:
        duty: Share of the time that the learner may work.
        state: `running`, `slowed` or `paused`; `down`: it might run, and no learner is heard.
        reasons: Why not `running`.
        unmeasured: Limits that are not kept, since this machine does not measure what they limit.
        limits: Those that are set, budgets included.
    """

    duty: float
    state: str
    reasons: tuple[Reason, ...] = ()
    unmeasured: tuple[str, ...] = ()
    limits: tuple[Measured, ...] = ()

    @property
    def text(self) -> str:
        """In one line."""
        why = "; ".join(reason.text for reason in self.reasons)
        how = (
            f"{self.state} to {self.duty:.0%} of the time" if self.state == "slowed" else self.state
        )
        return f"{how}: {why}" if why else how

    def to_json(self) -> dict[str, Any]:
        """As clients see it."""
        reasons = [
            {"reason": r.reason, "text": r.text, "value": r.value, "limit": r.limit}
            for r in self.reasons
        ]
        return {
            "state": self.state,
            "duty": round(self.duty, 4),
            "text": self.text,
            "reasons": reasons,
            "unmeasured": [*self.unmeasured],
            "limits": [vars(limit) for limit in self.limits],
        }


class _BudgetGate:
    def __init__(
        self, name: str, most: float, unit: str, total: Callable[[Readings], float]
    ) -> None:
        self.closed: Reason | None = None
        self.now = Measured(name, most, None)
        self._unit, self._total = unit, total
        self._budget = Budget(most)

    def period(self, readings: Readings, now: float) -> None:
        name, most = self.now.name, self.now.limit
        used = self._budget.used(self._total(readings), now)
        text = f"{used:.0f} {self._unit} of learning in the last hour, budget {most:g}"
        spent = self._budget.spent(used)
        self.closed = Reason(name, text, used, most) if spent else None
        unread = name == "budget_joules" and readings.watts is None
        self.now = Measured(name, most, None if unread else used)


class Controller:
    """Judges one period after the other.

    Args:
        settings: The limits.
        telemetry_expected: Whether power and temperature are to be had here: this is a board, or a
            source was named.
    """

    def __init__(self, settings: GovernorSettings, *, telemetry_expected: bool) -> None:
        self._settings = settings
        self._expected = telemetry_expected
        self._duty = DutyControl(settings.max_duty)
        self._hours = Hours(settings.hours)
        self._limits = limits(settings)
        self._budgets = [
            _BudgetGate("budget_seconds", settings.budget_seconds, "s", lambda r: r.seconds),
            _BudgetGate("budget_steps", settings.budget_steps, "steps", lambda r: r.steps),
            _BudgetGate("budget_joules", settings.budget_joules, "J", lambda r: r.joules),
        ]
        self._found: tuple[Finding, ...] = ()
        self._last: Reason | None = None  # what the duty was lowered for
        self._readings = Readings()

    @property
    def short_of_memory(self) -> bool:
        """Whether less memory is free than must be."""
        return any(f.level is Level.OVER and f.reason.reason == "memory" for f in self._found)

    def period(self, readings: Readings, now: float) -> None:
        """Judge one period.

        Args:
            readings: What was read.
            now: Seconds on a clock that does not jump.
        """
        self._readings = readings
        found = [limit.judge(readings) for limit in self._limits]
        over = [finding.reason for finding in found if finding.level is Level.OVER]
        stale = self._stale(readings)
        if stale is not None:
            found.append(Finding(Level.NEAR, stale))
        self._found = tuple(found)
        self._last = next(iter([*over, *([stale] if stale else [])]), self._last)
        most = self._settings.max_duty
        self._duty.period(
            max((finding.level for finding in found), default=Level.FINE),
            now,
            working=readings.working,
            cap=most if stale is None else min(most, self._settings.safe_duty),
            blind=any(f.level is not Level.FINE and f.reason.value is None for f in found),
        )
        if self._duty.duty >= most:
            self._last = None
        for budget in self._budgets:
            budget.period(readings, now)

    def state(self, local: datetime.datetime, operator: Reason | None) -> State:
        """What learning may do now.

        Args:
            local: The time of day here.
            operator: An operator's pause, while one holds.
        """
        gates = [budget.closed for budget in self._budgets if budget.closed]
        if not self._hours.contain(local):
            gates.append(Reason("hours", f"outside the hours {self._hours.text}"))
        if operator is not None:
            gates.append(operator)
        duty = 0.0 if gates else self._duty.duty
        state = "paused" if duty == 0 else "slowed" if duty < self._settings.max_duty else "running"
        felt = [finding.reason for finding in self._found if finding.level is not Level.FINE]
        if self._duty.duty >= self._settings.max_duty:
            felt = []  # near a limit, and not slowed by it
        elif not felt and self._last is not None:
            last = self._last
            felt = [Reason(last.reason, f"recovering from {last.text}", last.value, last.limit)]
        reasons = () if state == "running" else (*gates, *felt)
        return State(duty, state, reasons, self._unmeasured(), self._measured())

    def _stale(self, readings: Readings) -> Reason | None:
        """Telemetry that there should be and is not."""
        settings = self._settings
        needs_watts = self._expected or settings.max_watts > 0 or settings.budget_joules > 0
        lost = [
            name
            for name, value, due in (
                ("power", readings.watts, needs_watts or readings.watts_known),
                ("temperature", readings.celsius, readings.celsius_known),
            )
            if due and value is None
        ]
        if not lost:
            return None
        return Reason("telemetry", f"no reading of {' and '.join(lost)}")

    def _measured(self) -> tuple[Measured, ...]:
        limits = [
            Measured(limit.name, limit.rule.limit, limit.value(self._readings))
            for limit in self._limits
        ]
        return (*limits, *(budget.now for budget in self._budgets if budget.now.limit > 0))

    def _unmeasured(self) -> tuple[str, ...]:
        readings = self._readings
        known = {
            "max_watts": readings.watts_known or self._settings.max_watts == 0,
            "max_celsius": readings.celsius_known or self._settings.max_celsius == 0,
            "budget_joules": readings.watts_known or self._settings.budget_joules == 0,
        }
        return tuple(name for name, measured in known.items() if not measured)
