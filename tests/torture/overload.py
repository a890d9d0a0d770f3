"""More than a slow disk takes: refused early, nothing acknowledged lost, the queue bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.ledger import Ledger, audit
from tests.torture.load import Load
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.shim import Shim

_QUEUE_SAMPLES = 24
# A single request larger than the queue is let in when nothing else waits.
_LARGEST_REQUEST = 16
_SYNC_SECONDS = 0.05


@dataclass
class Overloaded:
    """What overload showed."""

    acknowledged: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    deepest: float = 0.0
    broken: list[str] = field(default_factory=list)


def overload(
    zygote: Zygote,
    shim: Shim,
    folder: Path,
    seconds: float,
    bugs: Sequence[str] = (),
) -> Overloaded:
    """Post from eight clients to a daemon whose every sync takes 50 ms and whose queue is short."""
    result = Overloaded()
    daemon = ForkedDaemon(zygote, folder, *bugs, store__queue_samples=_QUEUE_SAMPLES)
    shim.watch(daemon.store)
    with closing(Ledger(folder / "ledger")) as ledger, closing(Load(ledger, 1)) as load:
        with daemon:
            shim.delay_syncs(_SYNC_SECONDS)
            try:
                load.start(daemon.client.base_url.port or 0)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    depth = daemon.metric("ffedge_sample_queue_depth") or 0.0
                    result.deepest = max(result.deepest, depth)
                load.stop()
            finally:
                shim.delay_syncs(0)
        result.refusals = load.refused
        found = audit(daemon.store, ledger.entries())
        result.acknowledged = found.acknowledged
        result.broken = found.broken() + load.wrong
    if result.deepest > max(_QUEUE_SAMPLES, _LARGEST_REQUEST):
        result.broken.append(f"{result.deepest:.0f} samples waited, at most {_QUEUE_SAMPLES} may")
    if not result.refusals.get("queue_full"):
        result.broken.append("nothing was refused")
    return result
