"""Which limits there are: what each reads, how wide its band is, how it is told in words.

Bands are worked out so that a tenth of the duty more, from `fine`, ends within them: learning
takes less power than the whole limit, so a tenth of it takes less than a tenth of the limit; a
tenth of the duty is seldom worth more than three degrees, six of the half degrees that sensors
tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from daemon.config import GovernorSettings
from daemon.governor.readings import Readings
from daemon.governor.rules import Finding, Reason, Rule

_BAND_CELSIUS = 3.0
_BAND_RATIO = 0.1  # of the limit
_BAND_LATENCY_RATIO = 0.2  # a tail is noisier
_BAND_MEMORY_RATIO = 0.25
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limit:
    """One limit.

    Args:
        name: Its key in `[governor]`.
        reason: One word.
        rule: Judges.
        value: Picks its reading.
        told: A reading in words.
        limit_told: The limit in words.
        unread: What it judges by where there is no reading; None: by there being none.
    """

    name: str
    reason: str
    rule: Rule
    value: Callable[[Readings], float | None]
    told: Callable[[Readings, float], str]
    limit_told: str
    unread: float | None = None

    def judge(self, readings: Readings) -> Finding:
        """What it says of one period."""
        value = self.value(readings)
        value = self.unread if value is None else value
        level = self.rule.judge(value)
        found = "not known now" if value is None else self.told(readings, value)
        text = f"{found}, limit {self.limit_told}"
        return Finding(level, Reason(self.reason, text, value, self.rule.limit))


def limits(settings: GovernorSettings) -> list[Limit]:
    """Those that are set; 0 is without limit, and so is a share of 1."""
    watts, celsius, free = settings.max_watts, settings.max_celsius, settings.min_free_bytes
    ratio, seconds = settings.max_cpu_ratio, settings.max_predict_seconds
    found = []
    if watts > 0:
        rule = Rule(watts, _BAND_RATIO * watts)
        found.append(
            Limit(
                "max_watts",
                "power",
                rule,
                lambda r: r.watts,
                lambda _, v: f"{v:.2f} W",
                f"{watts:g}",
            )
        )
    if celsius > 0:
        rule = Rule(celsius, _BAND_CELSIUS)

        def hottest(readings: Readings, value: float) -> str:
            return f"{value:.1f} C in zone {readings.zone}"

        shown = f"{celsius:.1f}"
        found.append(Limit("max_celsius", "temperature", rule, lambda r: r.celsius, hottest, shown))
    if free > 0:
        rule = Rule(free, _BAND_MEMORY_RATIO * free, least=True)

        def memory(_: Readings, value: float) -> str:
            return f"{value / _MEBIBYTE:.0f} MiB of RAM are free"

        shown = f"{free / _MEBIBYTE:.0f} MiB"
        found.append(Limit("min_free_bytes", "memory", rule, lambda r: r.free_bytes, memory, shown))
    if ratio < 1:
        rule = Rule(ratio, _BAND_RATIO * ratio)

        def share(_: Readings, value: float) -> str:
            return f"the learner takes {value:.0%} of the processors"

        shown = f"{ratio:.0%}"
        found.append(Limit("max_cpu_ratio", "processor", rule, lambda r: r.cpu_ratio, share, shown))
    if seconds > 0:
        rule = Rule(seconds, _BAND_LATENCY_RATIO * seconds)

        def slow(_: Readings, value: float) -> str:
            return f"99 % of predictions take up to {1e3 * value:.1f} ms"

        shown = f"{1e3 * seconds:g} ms"
        found.append(
            Limit(
                "max_predict_seconds",
                "latency",
                rule,
                lambda r: r.predict_seconds,
                slow,
                shown,
                unread=0.0,  # too few predictions to say: nobody is kept waiting
            )
        )
    return found
