"""What the power reader may say, and what is refused of it."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.power_provider import PROTOCOL, without_odd
from daemon.power_reading import REASONS, PowerReading, ReadingRefusedError, decode_reading

WHOLE = {
    "protocol": PROTOCOL,
    "monotonic_seconds": 100.5,
    "provider": "jtop",
    "interval_seconds": 1.0,
    "refused": {"jtop": "no service"},
    "watts": 7.0,
    "rails": {"VDD_SOC": 2.1, "VDD_CPU_GPU_CV": 2.4},
    "mean": False,
    "celsius": {"cpu": 47.218, "tj": -3.5},
    "ram_used_bytes": 3_000_000_000,
    "ram_total_bytes": 7_800_000_000,
    "ram_gpu_bytes": 200_000_000,
    "gpu_ratio": 0.35,
    "nvpmodel": "MAXN_SUPER",
    "throttled": False,
}
LEAST = {key: WHOLE[key] for key in list(WHOLE)[:5]}


def decoded(fields: object, after: float = 100.0, now: float = 101.0) -> PowerReading:
    return decode_reading(json.dumps(fields).encode(), after=after, now=now)


def refused(line: bytes, reason: str) -> None:
    with pytest.raises(ReadingRefusedError) as caught:
        decode_reading(line, after=100.0, now=101.0)
    assert caught.value.reason == reason
    assert reason in REASONS


def test_a_whole_line_is_a_reading():
    assert msgspec.to_builtins(decoded(WHOLE)) == WHOLE


def test_what_is_not_said_is_absent():
    reading = decoded(LEAST)
    assert reading.watts is None
    assert reading.ram_gpu_bytes is None
    assert (reading.rails, reading.celsius) == ({}, {})


def test_nothing_is_a_reading_too():
    assert decoded(WHOLE | {"watts": 0, "gpu_ratio": 0}).watts == 0.0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number):
    line = json.dumps(WHOLE).replace('"watts": 7.0', f'"watts": {number}').encode()
    refused(line, "value" if number == "1e999" else "json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("watts", -0.001),
        ("watts", 2001),
        ("watts", "7"),
        ("watts", [7]),
        ("rails", {"VDD_SOC": -1}),
        ("rails", {"VDD_SOC": None}),
        ("rails", {f"rail{n}": 1 for n in range(33)}),
        ("rails", {"a\nb": 1}),
        ("rails", {"": 1}),
        ("rails", {"x" * 65: 1}),
        ("celsius", {"cpu": -256}),
        ("celsius", {"cpu": 47218}),
        ("ram_used_bytes", -1),
        ("ram_used_bytes", 1.5),
        ("ram_used_bytes", 2**60),
        ("ram_used_bytes", 7_800_000_001),
        ("gpu_ratio", 35),
        ("nvpmodel", 'x"} 1\n'),
        ("throttled", 1),
        ("mean", 1),
        ("provider", None),
        ("interval_seconds", 0),
        ("interval_seconds", 1e9),
        ("monotonic_seconds", "now"),
        ("joules", 1),
    ],
)
def test_a_value_out_of_all_bounds_is_refused(field, value):
    refused(json.dumps(WHOLE | {field: value}).encode(), "value")


@pytest.mark.parametrize("protocol", [PROTOCOL + 1, 0, -1])
def test_another_version_is_refused_whatever_its_fields_mean(protocol):
    refused(json.dumps({"protocol": protocol, "power_milliwatts": 7000}).encode(), "version")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "json"),
        (b"Traceback (most recent call last):", "json"),
        (b"\xff\xfe", "json"),
        (b'{"protocol": 1, "watts": ', "json"),
        (b'{"protocol": 1, "refused": ' + b"[" * 50_000, "json"),
        (b"[]", "value"),
        (b"7", "value"),
        (b"{}", "value"),
        (b'{"protocol": "1"}', "value"),
    ],
)
def test_what_is_no_reading_is_refused(line, reason):
    refused(line, reason)


@pytest.mark.parametrize("at", [100.0, 99.0, 101.5, 0.0, 1e12])
def test_a_time_that_is_not_since_the_last_reading_is_refused(at):
    refused(json.dumps(WHOLE | {"monotonic_seconds": at}).encode(), "time")


def test_the_two_processes_may_read_their_clock_a_little_apart():
    assert decoded(WHOLE | {"monotonic_seconds": 101.04}).monotonic_seconds == 101.04


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_raise_nothing_else(line):
    with pytest.raises(ReadingRefusedError):
        decode_reading(line, after=0.0, now=1.0)


numbers = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none())


@given(st.dictionaries(st.sampled_from(list(WHOLE)), numbers, min_size=1))
def test_any_field_may_lie(changes):
    """What comes through is finite and within its bounds."""
    try:
        reading = decoded(WHOLE | changes)
    except ReadingRefusedError:
        return
    assert reading.watts is None or 0 <= reading.watts <= 2000
    assert 100.0 < reading.monotonic_seconds <= 101.05
    assert reading.gpu_ratio is None or 0 <= reading.gpu_ratio <= 1


values = st.dictionaries(st.text(max_size=70), st.floats() | st.integers(), max_size=40)


@given(values, values, st.none() | st.floats(), st.none() | st.text(max_size=70))
def test_no_sensor_beside_the_power_can_make_a_line_be_refused(rails, celsius, ratio, mode):
    odd = {"rails": rails, "celsius": celsius, "gpu_ratio": ratio, "nvpmodel": mode}
    said = {key: value for key, value in odd.items() if value is not None}
    reading = decoded(LEAST | {"watts": 7.0} | without_odd(said))
    assert reading.watts == 7.0


def test_what_is_within_bounds_stays_as_it_is():
    assert without_odd(WHOLE) == WHOLE


def test_of_names_that_become_the_same_the_first_stays():
    assert without_odd({"rails": {"A&": 1.0, "A%": 2.0}})["rails"] == {"A_": 1.0}
