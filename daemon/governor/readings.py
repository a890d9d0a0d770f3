"""What the governor knows of the machine in one period, and where it reads that."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from daemon.governor.latency import RecentLatencies
from daemon.power import PowerMonitor

# A learner that is paced works some steps and sleeps: one period says little.
_CPU_PERIODS = 5


@dataclass(frozen=True)
class Readings:
    """One period's; None: it cannot be read, or not now.

    Args:
        watts: What the board takes in.
        watts_known: Whether it was read since the start.
        celsius: The hottest zone.
        zone: Its name.
        celsius_known: Whether a temperature was read since the start.
        free_bytes: RAM that is available.
        cpu_ratio: The learner's share of all processors' time, over the last periods.
        predict_seconds: 99th of a hundred of the newest predictions.
        joules: What the board took while the learner was at work and not paused, so far.
        seconds: What the learner has worked so far, without its sleep between steps.
        steps: Steps it has taken so far.
        working: Whether it is at a job.
    """

    watts: float | None = None
    watts_known: bool = False
    celsius: float | None = None
    zone: str = ""
    celsius_known: bool = False
    free_bytes: int | None = None
    cpu_ratio: float | None = None
    predict_seconds: float | None = None
    joules: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    working: bool = False


class Machine:
    """Reads it.

    Args:
        power: Knows watts and temperatures.
        latencies: Of predictions.
        learner_pid: The learner's process; None while it does not run.
        worked: Seconds and steps that the learner has worked so far.
        working: Whether it is at a job.
    """

    def __init__(
        self,
        power: PowerMonitor,
        latencies: RecentLatencies,
        learner_pid: Callable[[], int | None],
        worked: Callable[[], tuple[float, int]],
        working: Callable[[], bool],
    ) -> None:
        self._power = power
        self._latencies = latencies
        self._worked = worked
        self._working = working
        self._cpu = _CpuShare(learner_pid)
        self._watts_known = self._celsius_known = False

    def read(self) -> Readings:
        """This period's readings."""
        reading = self._power.reading
        watts = None if reading is None else reading.watts
        celsius = {} if reading is None else reading.celsius
        zone = max(celsius, key=celsius.__getitem__, default="")
        self._watts_known |= watts is not None
        self._celsius_known |= bool(celsius)
        seconds, steps = self._worked()
        return Readings(
            watts=watts,
            watts_known=self._watts_known,
            celsius=celsius.get(zone),
            zone=zone,
            celsius_known=self._celsius_known,
            free_bytes=psutil.virtual_memory().available,
            cpu_ratio=self._cpu.read(),
            predict_seconds=self._latencies.p99(time.monotonic()),
            joules=self._power.energy().learning or 0.0,
            seconds=seconds,
            steps=steps,
            working=self._working(),
        )


class _CpuShare:
    def __init__(self, pid: Callable[[], int | None]) -> None:
        self._pid = pid
        self._read: deque[tuple[float, float]] = deque(maxlen=_CPU_PERIODS + 1)
        self._process: psutil.Process | None = None

    def read(self) -> float | None:
        pid = self._pid()
        if self._process is None or self._process.pid != pid:
            self._read.clear()
            self._process = None
            if pid is not None:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    self._process = psutil.Process(pid)
        if self._process is None:
            return None
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return None
        self._read.append((time.monotonic(), times.user + times.system))
        (began, before), (now, total) = self._read[0], self._read[-1]
        if now <= began:
            return None
        return (total - before) / (now - began) / (psutil.cpu_count() or 1)
