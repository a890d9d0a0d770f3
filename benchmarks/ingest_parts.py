"""What `benchmarks.ingest` measures, part by part; each gives records of one finding each."""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.ingest_client import Finding
from benchmarks.ingest_daemon import LoadedDaemon, serving, slow_fsync
from benchmarks.ingest_wear import loop_device
from benchmarks.report import Record
from benchmarks.trial import TrialError

_OVERLOAD = 3.0
_PAGES = 20
_REPLAYS = 50
_REPLAY_SAMPLES = 64


def post_singles(asked: argparse.Namespace) -> Iterator[Record]:
    """Closed loop: the most single samples a second that are acknowledged as durable."""
    yield from _with_each_fsync(asked, "closed", lambda daemon: _singles(daemon, asked))


def post_at_rate(asked: argparse.Namespace) -> Iterator[Record]:
    """Open loop: latency at a rate, from the planned time."""

    def load(daemon: LoadedDaemon) -> Finding:
        return _singles(daemon, asked, rate=asked.rate)

    yield from _with_each_fsync(asked, "open", load)


def post_batches(asked: argparse.Namespace) -> Iterator[Record]:
    """Closed loop of batches: samples a second."""
    yield from _with_each_fsync(
        asked, "batch", lambda daemon: _batches(daemon, asked, seconds=asked.seconds)
    )


def overload(asked: argparse.Namespace) -> Iterator[Record]:
    """An open loop at three times what a closed one reaches: what is refused, and what is not."""
    with _folder(asked) as folder, serving(folder, asked.features) as daemon:
        for round_ in range(asked.rounds):
            most = _rate(_singles(daemon, asked))
            began = daemon.cpu_seconds()
            found = _singles(daemon, asked, rate=_OVERLOAD * most, connections=400)
            used = daemon.cpu_seconds() - began
            yield _record("overload", asked, found, used, round=round_, capacity=most)


def fill(asked: argparse.Namespace) -> Iterator[Record]:
    """A large store beside an empty one: filling it, starting on it, reading from it."""
    with _folder(asked) as folder:
        with serving(folder, asked.features) as daemon:
            began = daemon.cpu_seconds()
            found = _batches(daemon, asked, requests=-(-asked.samples // asked.batch), seconds=3600)
            yield _record("fill", asked, found, daemon.cpu_seconds() - began)
        with serving(folder, asked.features) as full:
            reads = _read(full, folder / "var", asked.features)
            yield {"part": "full", "ready_seconds": full.ready_seconds, **reads}
            for round_ in range(asked.rounds):
                with _folder(asked) as other, serving(other, asked.features) as empty:
                    own = {"empty": empty, "full": full}
                    rates = {
                        name: _rate(_batches(daemon, asked, seconds=asked.seconds))
                        for name, daemon in sorted(own.items(), reverse=round_ % 2 == 1)
                    }
                    yield {
                        "part": "full_and_empty",
                        "round": round_,
                        "empty_ready_seconds": empty.ready_seconds,
                        "samples_per_second": {n: r * asked.batch for n, r in rates.items()},
                    }


def wear(asked: argparse.Namespace) -> Iterator[Record]:
    """Bytes that reach the device for each byte of features, at the rated load."""
    loads: dict[str, Callable[[LoadedDaemon], Finding]] = {
        "singles": lambda daemon: _singles(daemon, asked, rate=asked.rate),
        "batches": lambda daemon: _batches(daemon, asked, seconds=asked.seconds),
    }
    for form, load in loads.items():
        with _folder(asked) as folder, loop_device(folder) as device:
            with serving(device.mounted, asked.features) as daemon:
                device.sync()
                before = device.written_bytes()
                found = load(daemon)
                commits = daemon.metric("ffedge_commit_duration_seconds_count")
                samples = daemon.metric("ffedge_samples_stored")
            device.sync()
            payload = samples * asked.features
            yield _record("wear", asked, found, None, load=form) | {
                "samples": samples,
                "commits": commits,
                "device_bytes": device.written_bytes() - before,
                "payload_bytes": payload,
                "device_bytes_per_payload_byte": (device.written_bytes() - before) / payload,
            }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Record]]] = {
    "closed": post_singles,
    "open": post_at_rate,
    "batch": post_batches,
    "overload": overload,
    "fill": fill,
    "wear": wear,
}


def _with_each_fsync(
    asked: argparse.Namespace, part: str, load: Callable[[LoadedDaemon], Finding]
) -> Iterator[Record]:
    for milliseconds in asked.fsync_delays:
        with _folder(asked) as folder:
            delayed = slow_fsync(folder, round(1e3 * milliseconds)) if milliseconds else {}
            with serving(
                folder, asked.features, learning=asked.learning, environment=delayed
            ) as daemon:
                for round_ in range(asked.rounds):
                    began = daemon.cpu_seconds()
                    found = load(daemon)
                    used = daemon.cpu_seconds() - began
                    yield _record(
                        part, asked, found, used, round=round_, fsync_milliseconds=milliseconds
                    )


def _singles(daemon: LoadedDaemon, asked: argparse.Namespace, **plan: Any) -> Finding:  # noqa: ANN401
    own = {"connections": asked.connections, "seconds": asked.seconds} | plan
    return daemon.load(form="json", batch=1, features=asked.features, **own)


def _batches(daemon: LoadedDaemon, asked: argparse.Namespace, **plan: Any) -> Finding:  # noqa: ANN401
    return daemon.load(
        form=asked.form,
        batch=asked.batch,
        features=asked.features,
        connections=asked.batch_connections,
        **plan,
    )


def _rate(found: Finding) -> float:
    """Accepted posts a second.

    Raises:
        TrialError: None was.
    """
    accepted = found.statuses.get(201, 0)
    if not accepted:
        raise TrialError(f"no post was accepted; answers by status: {found.statuses}")
    return accepted / found.seconds


def _record(
    part: str,
    asked: argparse.Namespace,
    found: Finding,
    cpu_seconds: float | None,
    **own: Any,  # noqa: ANN401 - a record's fields
) -> Record:
    posts = sum(found.statuses.values())
    batch = asked.batch if part in ("batch", "fill") or own.get("load") == "batches" else 1
    return {
        "part": part,
        "batch": batch,
        "rate": asked.rate if part in ("open", "wear") else None,
        **own,
        "posts_per_second": _rate(found),
        "samples_per_second": batch * _rate(found),
        # Warm-up included in the time, not in the posts: a few percent too much.
        "cpu_microseconds_per_post": 1e6 * cpu_seconds / posts if cpu_seconds else None,
        **msgspec.to_builtins(found, str_keys=True),
    }


def _read(daemon: LoadedDaemon, store: Path, features: int) -> dict[str, Any]:
    """Milliseconds of pages, over HTTP, and of a replay batch, as the learner reads it."""
    from daemon.store import SampleReader
    from models import ModelSpec

    middle = int(daemon.metric("ffedge_samples_stored")) // 2
    queries = {
        "newest": f"after_seq={2 * middle - 100}",
        "middle": f"after_seq={middle}",
        "label": f"after_seq={middle}&label=3",
        "source": f"after_seq={middle}&source=bench",
        "label and source": f"after_seq={middle}&label=3&source=bench",
        "no label": "label=null",
        "no such source": "source=none",
        "label and no such source": "label=3&source=none",
        "features": f"after_seq={middle}&features=true",
    }
    pages = {
        name: _median_ms(functools.partial(daemon.get, f"/samples?{query}"))
        for name, query in queries.items()
    }
    reader = SampleReader(store, ModelSpec("mlp", (features,), 10, (64, 64)))
    random = np.random.default_rng(0)
    seqs = np.arange(1, reader.last_seq() + 1)[-2 * middle :]

    def replay() -> None:
        drawn = seqs[random.integers(0, len(seqs), _REPLAY_SAMPLES)]
        reader.batch(reader.samples(drawn.tolist()))

    found = {
        "page_milliseconds": pages,
        "counts_milliseconds": _median_ms(lambda: daemon.get("/samples/counts")),
        "metrics_milliseconds": _median_ms(lambda: daemon.get("/metrics")),
        "replay_batch_milliseconds": _median_ms(replay, _REPLAYS),
    }
    reader.close()
    return found


def _median_ms(act: Callable[[], object], times: int = _PAGES) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


@contextmanager
def _folder(asked: argparse.Namespace) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        yield Path(name)
