"""A machine that learning heats, for the tests of the governor: a first-order plant with noise."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import random
from typing import Any

from daemon.config import GovernorSettings
from daemon.governor.controller import Controller, State
from daemon.governor.readings import Readings

NOON = datetime.datetime(2026, 7, 1, 12, 0)


@dataclasses.dataclass
class Plant:
    """What one duty makes of power and temperature.

    Args:
        idle_watts: At no duty.
        learning_watts: On top of it at full duty.
        noise_watts: Standard deviation of a reading.
        ambient: Temperature without power, in celsius.
        degrees_a_watt: In the long run.
        seconds: Time constant of the heat sink.
        seed: Of the noise.
    """

    idle_watts: float = 5.0
    learning_watts: float = 10.0
    noise_watts: float = 0.1
    ambient: float = 25.0
    degrees_a_watt: float = 4.0
    seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._noise = random.Random(self.seed)
        self.watts = self.idle_watts
        self.celsius = self.ambient + self.degrees_a_watt * self.idle_watts

    def second(self, duty: float) -> Readings:
        """One second at a duty; what sensors say after it, in half degrees."""
        self.watts = self.idle_watts + self.learning_watts * duty
        final = self.ambient + self.degrees_a_watt * self.watts
        self.celsius += (final - self.celsius) / self.seconds
        return well(
            watts=max(0.0, self.watts + self._noise.gauss(0, self.noise_watts)),
            celsius=round(2 * self.celsius) / 2,
        )


def well(**changes: Any) -> Readings:
    """Readings of a machine that has everything and nothing to complain of."""
    plain = Readings(
        watts=5.0,
        watts_known=True,
        celsius=45.0,
        zone="soc",
        celsius_known=True,
        free_bytes=4 << 30,
        cpu_ratio=0.1,
        predict_seconds=0.002,
        working=True,
    )
    return dataclasses.replace(plain, **changes)


def controller(*, expected: bool = False, **limits: Any) -> Controller:
    return Controller(GovernorSettings(**limits), telemetry_expected=expected)


def state(judge: Controller) -> State:
    return judge.state(NOON, None)


def after(judge: Controller, *readings: Readings, start: float = 0.0) -> list[State]:
    """The states after each second."""
    states = []
    for second, reading in enumerate(readings):
        judge.period(reading, start + second)
        states.append(state(judge))
    return states


def trace(judge: Controller, plant: Plant, seconds: int) -> tuple[list[Readings], list[float]]:
    """Readings, and the duty after each, of a plant under control."""
    readings, duties = [], [state(judge).duty]
    for second in range(seconds):
        readings.append(plant.second(duties[-1]))
        judge.period(readings[-1], float(second))
        duties.append(state(judge).duty)
    return readings, duties[1:]


def reversals(duties: list[float]) -> int:
    """How often the duty went down after it had gone up, or never moved."""
    moves = [b - a for a, b in itertools.pairwise(duties) if a != b]
    downs = [i for i, move in enumerate(moves) if move < 0]
    return sum(1 for i in downs if i == 0 or moves[i - 1] > 0)
