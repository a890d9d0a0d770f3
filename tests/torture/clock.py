"""F10: the wall clock jumps while samples arrive; the monotonic one does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.running import RunningDaemon
from tests.torture.ledger import FEATURES, Ledger, audit
from tests.torture.load import sample_body
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.shim import Shim

HOUR, YEAR = 3600, 365 * 86400
_JUMPS = (HOUR, -HOUR, 10 * YEAR, -10 * YEAR)
# An age that a forward jump of a year would exceed, were age taken from the clock.
SETTINGS = {"store__max_age_days": 1}
# Limits are looked at after every 256 samples.
_POSTS = (256, 1, 1)
_DURATION = re.compile(r"^(ffedge_\w*seconds\w*)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_COUNTER = re.compile(
    r"^(ffedge_\w+(?:_total|_count|_sum|_bucket)(?:\{[^}]*\})?) (\S+)$", re.MULTILINE
)


@dataclass
class Jumped:
    """What some jumps showed."""

    jumps: int = 0
    restarts: int = 0
    acknowledged: int = 0
    broken: list[str] = field(default_factory=list)


def jump(
    zygote: Zygote,
    shim: Shim,
    folder: Path,
    jumps: int,
    bugs: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
    **settings: object,
) -> Jumped:
    """Move the clock `jumps` times, each third time over a restart, posting in between.

    The order must be that of arrival, nothing may go, no duration be negative, no counter fall.
    """
    jumped = Jumped()
    daemon = ForkedDaemon(zygote, folder, *bugs, **settings)
    last_seq = number = 0
    to_1970 = -int(time.time()) + 1
    offsets = [*_JUMPS, to_1970, 0]
    try:
        with closing(Ledger(folder / "ledger")) as ledger:
            while jumped.jumps < jumps and not jumped.broken:
                with daemon:
                    jumped.restarts += 1
                    counters: dict[str, float] = {}
                    for _ in range(3):
                        shim.shift_clock(offsets[jumped.jumps % len(offsets)])
                        jumped.jumps += 1
                        last_seq, number = _post(daemon, ledger, last_seq, number, jumped)
                        counters = _look(daemon, counters, jumped)
                    kept = daemon.metric("ffedge_samples_stored")
                    if kept != number:
                        jumped.broken.append(f"{number} samples were taken, {kept} are kept")
                found = audit(daemon.store, ledger.entries())
                jumped.acknowledged = found.acknowledged
                jumped.broken += found.broken()
                progress(f"{jumped.jumps} jumps, broken: {jumped.broken or 'nothing'}")
    finally:
        shim.shift_clock(0)
    return jumped


def _post(
    daemon: RunningDaemon, ledger: Ledger, last_seq: int, number: int, jumped: Jumped
) -> tuple[int, int]:
    for size in _POSTS:
        numbers = [*range(number, number + size)]
        body = {"samples": [sample_body(n, f"j-{n}") for n in numbers]}
        answer = daemon.client.post("/samples", json=body)
        if answer.status_code != 201:
            jumped.broken.append(f"samples were answered {answer.status_code}")
            break
        told = answer.json()
        if told["first_seq"] <= last_seq:
            jumped.broken.append("the order is not that of arrival")
        ledger.acknowledged(told["ids"], numbers, told["first_seq"])
        last_seq, number = told["last_seq"], number + size
    return last_seq, number


def _look(daemon: RunningDaemon, before: dict[str, float], jumped: Jumped) -> dict[str, float]:
    """Metrics, health and a prediction after a jump; the counters as they are now."""
    for path in ("/health/live", "/health/ready", "/models", "/train"):
        if daemon.client.get(path).status_code != 200:
            jumped.broken.append(f"{path} is not 200")
    if daemon.client.post("/predict", json={"x": [1] * FEATURES}).status_code != 200:
        jumped.broken.append("a prediction failed")
    text = daemon.client.get("/metrics").text
    negative = {name for name, _, value in _DURATION.findall(text) if float(value) < 0}
    if negative:
        jumped.broken.append(f"negative durations: {sorted(negative)}")
    counters = {name: float(value) for name, value in _COUNTER.findall(text)}
    fallen = {name for name, value in counters.items() if value < before.get(name, 0)}
    if fallen:
        jumped.broken.append(f"counters that fell: {sorted(fallen)}")
    return counters
