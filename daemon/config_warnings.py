"""Settings that can be had and are hardly meant: limits that never bind, or are always passed.

They are no errors: some of it depends on the machine, and what is odd may be a test. Each is one
line: what was found, what comes of it, what to set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from daemon.config import GovernorSettings, Settings

_MEBIBYTE = 1 << 20
_HOUR_SECONDS = 3600
_ALWAYS = "learning stays paused"
_NEVER = "learning is never slowed by it"
_LITTLE = "less than one block is learned in an hour"
# A candidate and its checkpoint, about, with float32 masters.
_WEIGHT_BYTES = 12
# Of store.max_bytes: beyond it the oldest go. A feature takes a byte, or four.
_KEPT_RATIO = 0.8
_SAMPLES_TO_BEGIN = 100_000
_BUSY = "learning stays paused while some 10 predictions or more are asked for a second"


@dataclass(frozen=True)
class _Span:
    """What a limit can sensibly be; 0 is without limit.

    Args:
        name: Its key in `[governor]`.
        unit: Its unit.
        least: Below it, `below` is what comes of it.
        below: In words.
        most: Above it, `above` is what comes of it.
        above: In words.
        meant: What to set, in words.
    """

    name: str
    unit: str
    least: float
    below: str
    most: float
    above: str
    meant: str


def config_warnings(settings: Settings, memory_bytes: int) -> list[str]:
    """All that is to be said of them.

    Args:
        settings: Valid ones.
        memory_bytes: RAM of this machine.
    """
    governor = settings.governor
    return [
        *_store(settings),
        *_slow(settings),
        *_unread(settings),
        *(
            text
            for span in _spans(memory_bytes, settings.learner.steps_per_block)
            if (text := _outside(span, governor))
        ),
    ]


def _spans(memory_bytes: int, block_steps: int) -> list[_Span]:
    return [
        # A board idles with more than 1 W; some 1000 are no board's: milliwatts were meant.
        _Span("max_watts", "W", 1, _ALWAYS, 1000, _NEVER, "watts"),
        # It runs warmer than a room, and switches itself off below 120.
        _Span("max_celsius", "C", 20, _ALWAYS, 120, _NEVER, "celsius, such as 85"),
        # 256 was meant to be MiB.
        _Span("min_free_bytes", "B", _MEBIBYTE, _NEVER, memory_bytes, _ALWAYS, "bytes of its RAM"),
        # No prediction is answered within a tenth of a millisecond; 50 was meant to be ms.
        _Span("max_predict_seconds", "s", 1e-4, _BUSY, 10, _NEVER, "seconds, such as 0.05"),
        _Span(
            "budget_seconds",
            "s",
            1,
            "hardly anything is learned",
            _HOUR_SECONDS,
            _NEVER,
            "seconds of each hour",
        ),
        _Span("budget_steps", "", block_steps, _LITTLE, math.inf, "", "steps of each hour"),
    ]


def _outside(span: _Span, governor: GovernorSettings) -> str | None:
    value = getattr(governor, span.name)
    if 0 < value < span.least:
        found, effect = f"is below {span.least}", span.below
    elif value > span.most:
        found, effect = f"is above {span.most}", span.above
    else:
        return None
    key = f"governor.{span.name}"
    unit = f" {span.unit}" if span.unit else ""
    return f"{key} = {value}{unit} {found}: {effect}; set {span.meant}, or 0: no limit"


def _unread(settings: Settings) -> Iterator[str]:
    """Limits of what is not read."""
    governor, provider = settings.governor, settings.power.provider
    wanting = " and ".join(
        f"governor.{name}" for name in ("max_watts", "budget_joules") if getattr(governor, name)
    )
    if wanting and provider == "none":
        most = f"at most governor.safe_duty = {governor.safe_duty:g} of the time"
        effect = f"learning gets {most}" if governor.safe_duty else "learning never runs"
        yield (
            f'power.provider = "none" reads no power for {wanting}: {effect}; '
            'set power.provider = "auto", or the limit 0'
        )
    elif wanting and provider == "auto" and not governor.safe_duty:
        yield (
            f"governor.safe_duty = 0 with {wanting}: where no power can be read learning never "
            "runs; set governor.safe_duty above 0"
        )
    if provider == "none" and "max_celsius" in governor.model_fields_set and governor.max_celsius:
        yield (
            'power.provider = "none" reads no temperature for governor.max_celsius: it is not '
            'kept; set power.provider = "auto", or governor.max_celsius = 0'
        )


def _slow(settings: Settings) -> Iterator[str]:
    """What makes one version take longer than anybody waits."""
    learner, ratio, wanted = settings.learner, settings.store.holdout_ratio, settings.gate
    size = _WEIGHT_BYTES * settings.model.spec().parameters
    if 0 < learner.write_bytes_per_second * _HOUR_SECONDS < size:
        hours = size / learner.write_bytes_per_second / _HOUR_SECONDS
        yield (
            f"learner.write_bytes_per_second = {learner.write_bytes_per_second} allows a candidate "
            f"of this network, some {size} bytes, every {hours:.1f} hours; set it to "
            f"{size // 60} or higher, or 0: no limit"
        )
    if (samples := wanted.min_samples / ratio) > _SAMPLES_TO_BEGIN:
        yield (
            f"store.holdout_ratio = {ratio:g} takes about {samples:.0f} samples until "
            f"gate.min_samples = {wanted.min_samples} score: no version is accepted before; set "
            "store.holdout_ratio higher, or gate.min_samples lower"
        )


def _never_begins(name: str, found: str, block_samples: int) -> str:
    return (
        f"{found} samples to learn, fewer than learner.block_samples = {block_samples}: learning "
        f"never begins; set store.{name} higher, or learner.block_samples lower"
    )


def _store(settings: Settings) -> Iterator[str]:
    """A store that is smaller than what is wanted of it."""
    store, gate, replayed = settings.store, settings.gate, settings.learner.replay_samples
    of_all_classes = store.max_class_samples * settings.model.max_classes
    block_samples, features = settings.learner.block_samples, settings.model.spec().features
    if 0 < (most := int(_KEPT_RATIO * store.max_bytes / features)) < block_samples:
        found = f"store.max_bytes = {store.max_bytes} keeps at most {most}"
        yield _never_begins("max_bytes", found, block_samples)
    limits = {"max_samples": store.max_samples, "max_class_samples": of_all_classes}
    for name, kept in limits.items():
        if not kept:
            continue
        found = f"store.{name} = {getattr(store, name)} keeps "
        scoring = int(kept * store.holdout_ratio)
        if scoring < gate.min_samples:
            yield (
                f"{found}about {scoring} samples that score and gate.min_samples = "
                f"{gate.min_samples} are wanted: hardly any version is accepted; "
                f"set store.{name} higher, or gate.min_samples lower"
            )
        if kept - scoring < block_samples:
            yield _never_begins(name, f"{found}about {kept - scoring}", block_samples)
        if kept < replayed:
            yield (
                f"{found}{kept} samples, fewer than the {replayed} of learner.replay_samples: "
                f"replay has no more than these; set store.{name} higher, or "
                "learner.replay_samples lower"
            )
