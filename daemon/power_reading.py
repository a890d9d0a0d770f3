"""One reading as the power reader writes it, and what is refused of it.

The reader is another program, perhaps of another version, over sensors that may lie: whatever it
says is checked here, once.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from daemon.power_provider import (
    LEAST_CELSIUS,
    LONGEST_NAME,
    MOST_CELSIUS,
    MOST_NAMES,
    MOST_WATTS,
    NAME_CHARACTERS,
    PROTOCOL,
)

# A name becomes the label of a metric.
Name = Annotated[str, Meta(pattern=rf"^[{NAME_CHARACTERS}]{{1,{LONGEST_NAME}}}$")]
Watts = Annotated[float, Meta(ge=0, le=MOST_WATTS)]
Celsius = Annotated[float, Meta(ge=LEAST_CELSIUS, le=MOST_CELSIUS)]
Bytes = Annotated[int, Meta(ge=0, le=2**50)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=2**40)]
_NAMES = Meta(max_length=MOST_NAMES)
_CLOCK_SECONDS = 0.05  # the two processes read one clock


class PowerReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the board said at one moment; None, or a name that is missing: it did not say.

    Args:
        protocol: Version of this struct.
        monotonic_seconds: When, on the machine's monotonic clock.
        provider: `jtop`, `ina3221`, `rapl` or `none`.
        interval_seconds: Between two readings, as the source has it.
        watts: What the board takes in (RAPL: the processor packages).
        rails: Parts of it, in watts, by name.
        mean: Whether power is the mean since the reading before, and not that of the moment.
        celsius: Temperatures by zone.
        ram_used_bytes: RAM that is not available.
        ram_total_bytes: All RAM.
        ram_gpu_bytes: RAM that the GPU holds.
        gpu_ratio: How busy the GPU is.
        nvpmodel: Name of the power mode.
        throttled: Whether the board counted an over-current event since the last reading.
        refused: Why each better source does not work.
    """

    protocol: int
    monotonic_seconds: Seconds
    provider: Name
    interval_seconds: Annotated[float, Meta(gt=0, le=600)]
    refused: Annotated[dict[Name, str], _NAMES]
    watts: Watts | None = None
    rails: Annotated[dict[Name, Watts], _NAMES] = {}
    mean: bool = False
    celsius: Annotated[dict[Name, Celsius], _NAMES] = {}
    ram_used_bytes: Bytes | None = None
    ram_total_bytes: Bytes | None = None
    ram_gpu_bytes: Bytes | None = None
    gpu_ratio: Ratio | None = None
    nvpmodel: Name | None = None
    throttled: bool | None = None


class _Version(msgspec.Struct):
    protocol: int


class ReadingRefusedError(Exception):
    """A line that is no reading.

    Args:
        reason: `json`, `version`, `value` or `time`; counted by it.
        message: What is wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


REASONS = ("json", "version", "value", "time")


def decode_reading(line: bytes, *, after: float, now: float) -> PowerReading:
    """A reading from a line.

    Args:
        line: What the reader wrote.
        after: Time of the reading before it, in seconds of the monotonic clock.
        now: The time.

    Raises:
        ReadingRefusedError: It is no reading, of another version, out of all bounds, or not of its
            time.
    """
    try:
        version = msgspec.json.decode(line, type=_Version).protocol
        if version != PROTOCOL:
            raise ReadingRefusedError("version", f"protocol {version}, and not {PROTOCOL}")
        reading = msgspec.json.decode(line, type=PowerReading)
    except msgspec.ValidationError as error:
        raise ReadingRefusedError("value", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReadingRefusedError("json", str(error)) from error
    if not after < reading.monotonic_seconds <= now + _CLOCK_SECONDS:
        raise ReadingRefusedError("time", "its time is not between the last reading's and now")
    used, total = reading.ram_used_bytes, reading.ram_total_bytes
    if used is not None and total is not None and used > total:
        raise ReadingRefusedError("value", "more RAM is used than there is")
    return reading
