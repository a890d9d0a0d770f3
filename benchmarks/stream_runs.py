"""One learner on one stream: fed through a real store, asked before it learns, judged, timed."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stream_learners import BASELINES, FRESH, GDUMB, NEWEST, OURS, Ours, StreamLearner
from benchmarks.stream_orders import Stream
from benchmarks.stream_scores import (
    faded,
    forgetting,
    level,
    present_accuracies,
    recovered,
)
from benchmarks.stream_served import ServedArms
from daemon.config import GateSettings, LearnerSettings, StoreSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.store import SampleReader, SampleStore
from models import ModelSpec

Record = dict[str, Any]
_WRITE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Block:
    """New samples that are learned together.

    Args:
        x: float32 `[block, *shape]`.
        labels: int64 `[block]`, classes.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int64]


class Feed:
    """A store that a stream flows into, and its blocks as the learner reads them.

    The store keeps its hold-out apart, so that a stream has about a tenth less to learn from; for
    every learner the same. A part's last block is as small as it comes.

    Args:
        stream: What comes.
        spec: The network.
        block_samples: As `learner.block_samples`.
        folder: Of the store.
    """

    def __init__(self, stream: Stream, spec: ModelSpec, block_samples: int, folder: Path) -> None:
        defaults = StoreSettings()
        self._stream = stream
        self._block_samples = block_samples
        self._store = SampleStore(
            folder,
            max_classes=spec.max_classes,
            holdout_ratio=defaults.holdout_ratio,
            queue_samples=defaults.queue_samples,
        )
        self._reader = SampleReader(folder, spec)
        self._through = 0

    def close(self) -> None:
        """Close the store."""
        self._reader.close()
        self._store.close()

    def blocks(self) -> Iterator[Block | None]:
        """Each block is to be learned before the next is asked for; None: it is time to judge."""
        begin = 0
        for end in self._stream.ends:
            for start in range(begin, end, self._block_samples):
                self._arrive(start, min(end, start + self._block_samples))
                yield from self._waiting(self._block_samples)
            yield from self._waiting(1)
            yield None
            begin = end

    def _arrive(self, start: int, stop: int) -> None:
        stream = self._stream
        samples = [
            Sample(*pack_features(x), int(label), None, "stream", None)
            for x, label in zip(stream.x[start:stop], stream.labels[start:stop], strict=True)
        ]
        self._store.add(samples).result(_WRITE_SECONDS)

    def _waiting(self, least: int) -> Iterator[Block]:
        names = [int(label) for label in self._reader.labels()]
        while self._reader.backlog(self._through) >= least:
            rows, self._through = self._reader.training(self._through, self._block_samples)
            x, places = self._reader.batch(rows)
            yield Block(x, np.take(names, places))


@contextmanager
def _opened(
    name: str, stream: Stream, spec: ModelSpec, settings: LearnerSettings
) -> Iterator[tuple[Feed, StreamLearner]]:
    with tempfile.TemporaryDirectory(prefix="ffedge-stream-") as place:
        folder = Path(place)
        feed = Feed(stream, spec, settings.block_samples, folder)
        try:
            if name == OURS:
                yield feed, Ours(spec, settings, folder, GateSettings().max_samples)
            else:
                yield feed, BASELINES[name](spec, settings)
        finally:
            feed.close()


def run_stream(
    name: str,
    stream: Stream,
    spec: ModelSpec,
    settings: LearnerSettings,
    *,
    serve: bool = False,
    fresh_level: float | None = None,
) -> Record:
    """What a learner made of a stream, as RECORDS.md describes it.

    Args:
        name: One of `LEARNER_NAMES`; or `FRESH`: `newest`, met with what comes after the change.
        stream: What it learns.
        spec: The network.
        settings: The daemon's.
        serve: For `ours`: after each block let gates judge what it has learned.
        fresh_level: What a learner that begins at the change reaches, a fraction.
    """
    fresh = name == FRESH
    met = stream.after_change() if fresh else stream
    run = _Run(met)
    with _opened(NEWEST if fresh else name, met, spec, settings) as (feed, learner):
        served = (
            ServedArms(learner.learner, learner.reader)
            if serve and isinstance(learner, Ours)
            else None
        )
        run.follow(feed, learner, served)
    right = np.concatenate(run.right)
    record = {
        "method": name,
        "stream": stream.name,
        "model": spec.name,
        "seed": settings.seed,
        "samples": len(right),
        "memory": settings.replay_samples,
        "steps": learner.steps,
        "alarms": [*learner.alarms],
        **run.judged(),
        **(_NEVER_ASKED if name == GDUMB else _progressive(run.right)),
        "class_samples": np.bincount(met.labels, minlength=spec.max_classes).tolist(),
    }
    change = None
    if fresh:
        change, fresh_level = 0, level(right)
    elif stream.change is not None:
        change = run.arrivals[stream.ends.index(stream.change)]
    if change is not None:
        record |= recovered(right, change, fresh_level)
    return record | {
        "served": {} if served is None else served.to_json(change, fresh_level),
        "train_seconds": run.seconds,
    }


class _Run:
    """What is noted while a learner follows a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._found: list[NDArray[np.int64]] = []  # answers to each test, when last judged
        self._matrix: list[list[float]] = []
        self.right: list[NDArray[np.bool_]] = []  # for each block
        self.arrivals: list[int] = []  # samples learned by each end
        self.seconds = 0.0

    def follow(self, feed: Feed, learner: StreamLearner, served: ServedArms | None) -> None:
        for block in feed.blocks():
            if block is None:
                with self._timed():
                    learner.settle()
                self._judge(learner)
                continue
            self.right.append(learner.answers(block.x) == block.labels)
            if served is not None:
                served.ask(block.x, block.labels)
            with self._timed():
                learner.learn(block.x, block.labels)
            if served is not None:
                served.propose()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def _judge(self, learner: StreamLearner) -> None:
        tests = self._stream.tests
        self.arrivals.append(sum(map(len, self.right)))
        self._found = [learner.answers(test.x) for test in tests]
        self._matrix.append(
            [float((f == t.labels).mean()) for f, t in zip(self._found, tests, strict=True)]
        )

    def judged(self) -> Record:
        """Accuracy on test samples: of all tasks, or of the concept that is present at the end."""
        stream, present = self._stream, self._stream.present
        columns = range(len(self._found)) if present is None else present[-1:]
        labels = np.concatenate([stream.tests[column].labels for column in columns])
        found = np.concatenate([self._found[column] for column in columns])
        by_class = [float((found[labels == c] == c).mean()) for c in np.unique(labels)]
        by_end = present_accuracies(self._matrix, present)
        return {
            "test_samples": len(labels),
            "accuracy": float((found == labels).mean()),
            "accuracy_by_end": by_end,
            "average_accuracy": float(np.mean(by_end)),
            "forgetting": forgetting(self._matrix) if present is None else None,
            "accuracy_matrix": self._matrix,
            "present": present and [*present],
            "ends": self.arrivals,
            "class_accuracy": by_class,
            "macro_accuracy": float(np.mean(by_class)),
        }


def _progressive(blocks: list[NDArray[np.bool_]]) -> Record:
    right = np.concatenate(blocks)
    return {
        "progressive_accuracy": float(right.mean()),
        "faded_accuracy": faded(right),
        "blocks": [[len(block), int(block.sum())] for block in blocks],
    }


# It learns where it is judged only.
_NEVER_ASKED: Record = {"progressive_accuracy": None, "faded_accuracy": None, "blocks": []}
