"""Streams: in which order samples come, and how the world changes meanwhile. Plain data, seeded.

| stream | what comes | judged on |
| --- | --- | --- |
| `class-pairs` | two classes at a time, shuffled within | each pair's test samples, after each pair |
| `class-by-class` | one class at a time | each class's, after each class |
| `drift-labels` | at half, every label becomes the next class's | old labels, new labels |
| `drift-inputs` | at half, inputs are inverted, `1 - x` | inputs as they were, inverted |
| `drift-gradual` | in the middle third a sensor's gain falls from 1 to 0.4 and its offset rises from 0 to 0.5 | inputs as they were, as they end |
| `recurring` | inputs inverted in the middle third only | inputs as they were, inverted |
| `long-tail` | class counts fall by a constant ratio to a fiftieth, shuffled | all test samples |
| `bursty` | the same counts, in bursts of one class (50 samples on average) | all test samples |

Which classes come first, or often, is drawn by seed, and so are the samples; none comes twice, and test
samples are never among them. Inputs are fractions, 0..1.
"""  # noqa: E501 - a table

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import Split
from benchmarks.samples import Samples, as_floats
from benchmarks.trial import TrialError

CLASS_INCREMENTAL = ("class-pairs", "class-by-class")
DRIFTING = ("drift-labels", "drift-inputs", "drift-gradual", "recurring")
IMBALANCED = ("long-tail", "bursty")
STREAM_NAMES = CLASS_INCREMENTAL + DRIFTING + IMBALANCED

TAIL_RATIO = 50
_BURST_SAMPLES = 50
_LAST_GAIN, _LAST_OFFSET = 0.4, 0.5
_JUDGED_TIMES = 4  # where there are no tasks

Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Samples in order of arrival, and what a learner is judged on.

    Args:
        name: One of `STREAM_NAMES`.
        x: float32 `[n, *shape]`.
        labels: int64 `[n]`, classes.
        ends: After how many samples the learner is judged; the last is n.
        tests: What it is judged on, each time on all: a task each, or a concept each.
        present: Of which of `tests` the samples are at each of `ends`; None: of all up to there,
            one more an end.
        change: Samples before the last change of the world; None: it never changes.
    """

    name: str
    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    ends: tuple[int, ...]
    tests: tuple[Samples, ...]
    present: tuple[int, ...] | None
    change: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def after_change(self) -> Stream:
        """What comes once the world has changed: the stream of a learner that begins there."""
        if self.change is None:
            raise TrialError(f"stream {self.name} has no change to begin at")
        kept = [place for place, end in enumerate(self.ends) if end > self.change]
        return dataclasses.replace(
            self,
            x=self.x[self.change :],
            labels=self.labels[self.change :],
            ends=tuple(self.ends[place] - self.change for place in kept),
            present=None if self.present is None else tuple(self.present[p] for p in kept),
            change=None,
        )


def open_stream(name: str, split: Split, *, seed: int, samples: int) -> Stream:
    """A stream of at most so many samples.

    Args:
        name: One of `STREAM_NAMES`.
        split: What it is drawn from, and what it is judged on.
        seed: Draws samples and their order.
        samples: At most; less where there are not as many.

    Raises:
        TrialError: There is no such stream, or too few samples for it.
    """
    random = np.random.default_rng(seed)
    if name in CLASS_INCREMENTAL:
        return _class_incremental(name, split, random, samples)
    if name in DRIFTING:
        return _drifting(name, split, random, samples)
    if name in IMBALANCED:
        return _imbalanced(name, split, random, samples)
    raise TrialError(f"stream {name!r} is unknown; known: {', '.join(STREAM_NAMES)}")


def _class_incremental(
    name: str, split: Split, random: np.random.Generator, samples: int
) -> Stream:
    together = 2 if name == "class-pairs" else 1
    order = random.permutation(len(split.train.classes))
    tasks = [order[place : place + together] for place in range(0, len(order), together)]
    if len(tasks) < 2:
        raise TrialError(f"stream {name} needs two tasks; the data has {len(order)} classes")
    rows = []
    for task in tasks:
        own = random.permutation(np.flatnonzero(np.isin(split.train.labels, task)))
        rows.append(own[: max(1, samples // len(tasks))])
    tests = tuple(_as_floats(_of_classes(split.test, task)) for task in tasks)
    return _stream(
        name, split.train, np.concatenate(rows), tuple(np.cumsum([*map(len, rows)])), tests, None
    )


def _of_classes(samples: Samples, classes: NDArray[np.int64]) -> Samples:
    return samples.take(np.flatnonzero(np.isin(samples.labels, classes)))


def _drifting(name: str, split: Split, random: np.random.Generator, samples: int) -> Stream:
    rows = random.permutation(len(split.train))[:samples]
    count, before = len(rows), _as_floats(split.test)
    half, third = count // 2, count // 3
    if name == "drift-labels":
        stream = _stream(name, split.train, rows, (half, count), (before, _next(before)), (0, 1))
        labels = stream.labels.copy()
        labels[half:] = (labels[half:] + 1) % len(before.classes)
        return dataclasses.replace(stream, labels=labels, change=half)
    if name == "drift-inputs":
        tests = (before, _changed(before, _invert))
        stream = _stream(name, split.train, rows, (half, count), tests, (0, 1))
        x = np.concatenate([stream.x[:half], _invert(stream.x[half:])])
        return dataclasses.replace(stream, x=x, change=half)
    if name == "recurring":
        ends, tests = (third, 2 * third, count), (before, _changed(before, _invert))
        stream = _stream(name, split.train, rows, ends, tests, (0, 1, 0))
        x = stream.x.copy()
        x[third : 2 * third] = _invert(x[third : 2 * third])
        return dataclasses.replace(stream, x=x, change=2 * third)
    tests = (before, _changed(before, lambda x: _sensed(x, np.ones(1, dtype=np.float32))))
    stream = _stream(name, split.train, rows, (third, 2 * third, count), tests, (0, 1, 1))
    place = np.arange(count, dtype=np.float32)
    done = np.clip((place - third) / np.float32(third), np.float32(0), np.float32(1))
    return dataclasses.replace(stream, x=_sensed(stream.x, done), change=third)


def _next(samples: Samples) -> Samples:
    moved = (samples.labels + 1) % len(samples.classes)
    return Samples(samples.x, moved, samples.classes)


def _invert(x: NDArray[np.float32]) -> NDArray[np.float32]:
    inverted: NDArray[np.float32] = np.float32(1) - x
    return inverted


def _sensed(x: NDArray[np.float32], done: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a sensor gives whose drift has come so far, from 0 to 1, float32 `[n]` or `[1]`."""
    done = done.reshape(-1, *[1] * (x.ndim - 1))
    gain = 1 + (_LAST_GAIN - 1) * done
    sensed: NDArray[np.float32] = (gain * x + _LAST_OFFSET * done).astype(np.float32)
    return sensed


def _imbalanced(name: str, split: Split, random: np.random.Generator, samples: int) -> Stream:
    classes = len(split.train.classes)
    shares = float(TAIL_RATIO) ** -(np.arange(classes) / max(1, classes - 1))
    have = np.bincount(split.train.labels, minlength=classes)
    order = random.permutation(classes)
    most = min(samples / shares.sum(), *(have[order] / shares))
    counts = np.maximum(1, (most * shares).astype(int))
    rows = np.concatenate(
        [
            random.permutation(np.flatnonzero(split.train.labels == index))[:count]
            for index, count in zip(order, counts, strict=True)
        ]
    )
    if name == "long-tail":
        rows = random.permutation(rows)
    else:
        rows = _in_bursts(rows, split.train.labels[rows], random)
    ends = tuple(len(rows) * part // _JUDGED_TIMES for part in range(1, _JUDGED_TIMES + 1))
    tests = (_as_floats(split.test),)
    return _stream(name, split.train, rows, ends, tests, (0,) * len(ends))


def _in_bursts(
    rows: NDArray[np.int64], labels: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """Rows cut into bursts of one class, and the bursts shuffled."""
    bursts = []
    for label in np.unique(labels):
        own = rows[labels == label]
        while len(own):
            size = int(random.geometric(1 / _BURST_SAMPLES))
            bursts.append(own[:size])
            own = own[size:]
    return np.concatenate([bursts[place] for place in random.permutation(len(bursts))])


def _stream(
    name: str,
    train: Samples,
    rows: NDArray[np.int64],
    ends: tuple[int, ...],
    tests: tuple[Samples, ...],
    present: tuple[int, ...] | None,
) -> Stream:
    ends = tuple(map(int, ends))
    if any(after <= before for before, after in zip((0, *ends), ends, strict=False)):
        raise TrialError(f"stream {name}: {len(rows)} samples are too few for {len(ends)} parts")
    taken = train.take(rows)
    return Stream(name, as_floats(taken.x), taken.labels, ends, tests, present)


def _as_floats(samples: Samples) -> Samples:
    return Samples(as_floats(samples.x), samples.labels, samples.classes)


def _changed(samples: Samples, change: Transform) -> Samples:
    return Samples(change(samples.x), samples.labels, samples.classes)
