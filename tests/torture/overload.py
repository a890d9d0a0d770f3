"""More than a slow disk takes: refused early, what was accepted is stored, the queue bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ingest_client import Finding
from benchmarks.ingest_daemon import run_client
from tests.running import RunningDaemon
from tests.torture.ledger import FEATURES
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.shim import Shim

_QUEUE_SAMPLES = 24
_SYNC_SECONDS = 0.05
_CONNECTIONS = 64


@dataclass
class Overloaded:
    """What overload showed.

    Args:
        accepted: Posts, of one sample each.
        refused: Posts that were told to come back.
        deepest: The most samples that were seen waiting.
    """

    accepted: int = 0
    refused: int = 0
    deepest: float = 0.0
    broken: list[str] = field(default_factory=list)


def post_singles(daemon: RunningDaemon, seconds: float, **plan: float) -> Finding:
    """What the client of `benchmarks.ingest` finds that posts single samples for so long."""
    address = daemon.client.base_url
    own = {"connections": _CONNECTIONS, "warm_up_seconds": 0.2, "seconds": seconds} | plan
    return run_client(
        host=address.host, port=address.port, form="json", batch=1, features=FEATURES, **own
    )


def overload(
    zygote: Zygote, shim: Shim, folder: Path, seconds: float, bugs: Sequence[str] = ()
) -> Overloaded:
    """Post from many clients to a daemon whose every sync takes 50 ms and whose queue is short."""
    result = Overloaded()
    daemon = ForkedDaemon(zygote, folder, *bugs, store__queue_samples=_QUEUE_SAMPLES)
    shim.watch(daemon.store)
    with daemon:
        shim.delay_syncs(_SYNC_SECONDS)
        try:
            with _watched(daemon, result):
                found = post_singles(daemon, seconds)
        finally:
            shim.delay_syncs(0)
        stored = daemon.metric("ffedge_samples_stored") or 0.0
    result.accepted, result.refused = found.statuses.pop(201, 0), found.statuses.pop(503, 0)
    if found.statuses:
        result.broken.append(f"answered otherwise: {found.statuses}")
    if found.refusals_without_retry_after:
        result.broken.append("some were not told when to come back")
    if stored < result.accepted:
        result.broken.append(f"{result.accepted} were accepted, {stored:.0f} are stored")
    if result.deepest > _QUEUE_SAMPLES:
        result.broken.append(f"{result.deepest:.0f} samples waited, at most {_QUEUE_SAMPLES} may")
    if not result.refused:
        result.broken.append("nothing was refused")
    return result


@contextmanager
def _watched(daemon: RunningDaemon, result: Overloaded) -> Iterator[None]:
    """Look at the queue all the while."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            depth = daemon.metric("ffedge_sample_queue_depth") or 0.0
            result.deepest = max(result.deepest, depth)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
