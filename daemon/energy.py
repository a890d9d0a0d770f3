"""Energy from readings of power: arithmetic alone, no clock, no threads.

Power between two readings of a moment is taken as the straight line between them (the trapezoid
rule). A reading that is a mean holds for all the time since the one before it. A gap that is too
long is not bridged, but counted as time that nothing is known about. Learning gets
what the whole board took while the learner was at work, not what it took on top of idling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_MOST_RAILS = 32
_MOST_SPANS = 10_000


@dataclass(frozen=True)
class Segment:
    """Power as a straight line between two moments, in seconds and watts."""

    start: float
    end: float
    start_watts: float
    end_watts: float

    def joules(self, start: float, end: float) -> float:
        """Energy between two moments inside it."""
        slope = (self.end_watts - self.start_watts) / (self.end - self.start)
        middle = (start + end) / 2
        return (self.start_watts + slope * (middle - self.start)) * (end - start)


class Trace:
    """One sensor's energy since its first reading.

    Attributes:
        joules: Energy over the time that is covered.
        covered_seconds: Time between readings that were near enough.
        gap_seconds: Time between readings that were not.
    """

    def __init__(self) -> None:
        self.joules = 0.0
        self.covered_seconds = 0.0
        self.gap_seconds = 0.0
        self._last: tuple[float, float] | None = None

    @property
    def newest(self) -> tuple[float, float] | None:
        """When the newest reading was, and its watts."""
        return self._last

    def add(
        self, at: float, watts: float, longest_gap_seconds: float, *, mean: bool = False
    ) -> Segment | None:
        """Take a reading.

        Args:
            at: When, in seconds; later than the one before.
            watts: What it was.
            longest_gap_seconds: Bridged at most.
            mean: Whether it is the mean since the reading before, and not of the moment.

        Returns:
            What lies between this reading and the one before, None if nothing is known of that.
        """
        before, self._last = self._last, (at, watts)
        if before is None:
            return None
        start, start_watts = before
        if at <= start:
            raise ValueError(f"a reading at {at} s follows one at {start} s")
        if at - start > longest_gap_seconds:
            self.gap_seconds += at - start
            return None
        segment = Segment(start, at, watts if mean else start_watts, watts)
        self.joules += segment.joules(start, at)
        self.covered_seconds += at - start
        return segment


class BusyTime:
    """When something was at work.

    Attributes:
        ended_seconds: Length of all spans that have ended.
    """

    def __init__(self) -> None:
        self.ended_seconds = 0.0
        self._began: float | None = None
        self._spans: deque[tuple[float, float]] = deque(maxlen=_MOST_SPANS)

    def begin(self, at: float) -> None:
        """It goes to work; in vain while it is at work."""
        if self._began is None:
            self._began = at

    def end(self, at: float) -> None:
        """It stops; in vain while it is not at work."""
        if self._began is not None:
            self._spans.append((self._began, at))
            self.ended_seconds += at - self._began
            self._began = None

    def between(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """Its spans, cut to two moments. Those that ended before `start` are forgotten."""
        while self._spans and self._spans[0][1] <= start:
            self._spans.popleft()
        running = [] if self._began is None else [(self._began, end)]
        for began, ended in [*self._spans, *running]:
            if (first := max(began, start)) < (last := min(ended, end)):
                yield first, last


@dataclass(frozen=True)
class Energy:
    """Energy since start, in joules; None: nothing is known yet.

    Args:
        board: Of the whole.
        rails: Of each part, by name.
        gap_seconds: Time between readings that were too far apart, in none of the others.
        learning: Of the whole while the learner was at work.
        per_sample: Mean of that over new samples learned.
        per_version: Mean of that over versions accepted, refused candidates paid for by them.
    """

    board: float | None
    rails: dict[str, float]
    gap_seconds: float
    learning: float | None
    per_sample: float | None
    per_version: float | None


class EnergyMeter:
    """Energy of the board, of each rail, and of learning.

    Attributes:
        learning: When the learner is at work.
    """

    def __init__(self) -> None:
        self.learning = BusyTime()
        self._board = Trace()
        self._rails: dict[str, Trace] = {}
        self._learning_joules = 0.0
        self._learning_covered_seconds = 0.0
        self._samples = 0
        self._versions = 0

    def add(
        self,
        at: float,
        watts: float,
        rails: Mapping[str, float],
        longest_gap_seconds: float,
        *,
        mean: bool = False,
    ) -> None:
        """Take a reading; see `Trace.add`."""
        for name, rail_watts in rails.items():
            if name in self._rails or len(self._rails) < _MOST_RAILS:
                trace = self._rails.setdefault(name, Trace())
                trace.add(at, rail_watts, longest_gap_seconds, mean=mean)
        segment = self._board.add(at, watts, longest_gap_seconds, mean=mean)
        if segment is not None:
            for start, end in self.learning.between(segment.start, segment.end):
                self._learning_joules += segment.joules(start, end)
                self._learning_covered_seconds += end - start

    def learned(self, samples: int, versions: int) -> None:
        """Count what a span of learning brought: new samples, and versions that were accepted."""
        self._samples += samples
        self._versions += versions

    def learning_until(self, at: float) -> float | None:
        """Joules while the learner was at work, up to a moment after the newest reading.

        Since that the power is taken to be what it said; None before the first.
        """
        if self._board.newest is None:
            return None
        read_at, watts = self._board.newest
        seconds = sum(end - start for start, end in self.learning.between(read_at, at))
        return self._learning_joules + seconds * watts

    def energy(self) -> Energy:
        """All of it so far."""
        board = self._board
        known = board.covered_seconds > 0
        return Energy(
            board=board.joules if known else None,
            rails={name: t.joules for name, t in self._rails.items() if t.covered_seconds},
            gap_seconds=board.gap_seconds,
            learning=self._learning_joules if known else None,
            per_sample=self._share(self._samples),
            per_version=self._share(self._versions),
        )

    def _share(self, count: int) -> float | None:
        """Time without readings is taken to have cost what the time with readings did."""
        if not count or not self._learning_covered_seconds:
            return None
        mean_watts = self._learning_joules / self._learning_covered_seconds
        return mean_watts * self.learning.ended_seconds / count
