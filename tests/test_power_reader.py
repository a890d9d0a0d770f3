"""The power reader as a program: which source it takes, what it does when one goes, how it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, get_args

import pytest

from daemon import power_reader
from daemon.config import PowerSettings
from daemon.jtop_provider import JtopProvider
from daemon.power import reader_command
from daemon.power_reader import PROVIDERS, opening_seconds
from tests.jtop_rig import fake_sysfs
from tests.power_fixtures import ReaderProcess
from tests.running import wait_for
from tests.test_power_providers import rapl


@pytest.fixture
def board(tmp_path) -> Path:
    return fake_sysfs.build(tmp_path / "sys")


def any_reading(_: object) -> bool:
    return True


def has_power(reading) -> bool:
    return reading.watts is not None


def test_it_needs_the_standard_library_alone(board):
    """A board's own Python has jetson-stats, and none of what the daemon is built on."""
    with ReaderProcess("-I", "-S", sysfs=board) as reader:
        found = reader.next(has_power, "a reading")
    assert found.watts == 7.0
    assert found.rails == {"VDD_CPU_GPU_CV": 2.4, "VDD_SOC": 2.1}
    assert found.celsius["cpu"] == 47.218
    assert found.ram_total_bytes > found.ram_used_bytes > 0


def odd_zone(board: Path, kind: str, milli_celsius: int, number: int) -> None:
    folder = board / fake_sysfs.THERMAL / f"thermal_zone{number}"
    folder.mkdir()
    (folder / "type").write_text(f"{kind}\n")
    (folder / "temp").write_text(f"{milli_celsius}\n")


@pytest.mark.parametrize("milli_celsius", [-256_000, -274_000, 2_000_000])
def test_a_temperature_that_cannot_be_is_absent_and_costs_no_power(board, milli_celsius):
    odd_zone(board, "cv0-thermal", milli_celsius, 4)
    with ReaderProcess(sysfs=board) as reader:
        found = reader.next(any_reading, "a line")
    assert found.watts == 7.0
    assert set(found.celsius) == {"cpu", "gpu", "soc0", "tj"}


def test_an_odd_name_is_made_plain_and_costs_no_power(tmp_path):
    rails = fake_sysfs.RAILS | {4: ("VDD&5V", 5000, 100), 5: ("x" * 70, 5000, 200)}
    board = fake_sysfs.build(tmp_path, rails=rails)
    odd_zone(board, "TMEM&1", 40_000, 4)
    with ReaderProcess(sysfs=board) as reader:
        found = reader.next(any_reading, "a line")
    assert found.watts == 7.0
    assert found.celsius["TMEM_1"] == 40.0
    assert (found.rails["VDD_5V"], found.rails["x" * 64]) == (0.5, 1.0)


def test_of_many_sensors_the_first_are_told_and_they_cost_no_power(tmp_path):
    rails = fake_sysfs.RAILS | {n: (f"VDD_{n}", 5000, 100) for n in range(4, 44)}
    board = fake_sysfs.build(tmp_path, rails=rails)
    for number in range(4, 44):
        odd_zone(board, f"soc{number}-thermal", 40_000, number)
    with ReaderProcess(sysfs=board) as reader:
        found = reader.next(any_reading, "a line")
    assert found.watts == 7.0
    assert (len(found.celsius), len(found.rails)) == (32, 32)


def test_each_line_is_a_reading_of_its_time_at_the_wanted_pace(board):
    with ReaderProcess(sysfs=board, interval_seconds=0.2) as reader:
        wait_for(lambda: len(reader.lines) >= 8, "eight lines")
        times = [reader.decoded(line).monotonic_seconds for line in reader.lines[:8]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap > 0 for gap in gaps)
    assert sum(gaps) >= 0.2 * len(gaps) - 0.05  # never faster; how much slower is the machine's


def test_the_first_source_that_works_is_taken_and_each_before_it_says_why_not(board):
    rapl(board, "intel-rapl:0", "package-0", 0)
    with ReaderProcess(sysfs=board, jtop_socket=board / "jtop.sock") as reader:
        found = reader.next(has_power, "a reading")
    assert found.provider == "ina3221"
    assert set(found.refused) == {"jtop"}
    assert "jetson-stats is not installed here" in found.refused["jtop"]


@pytest.mark.parametrize("provider", ["ina3221", "rapl"])
def test_a_source_that_is_named_is_the_only_one_that_is_tried(board, provider):
    rapl(board, "intel-rapl:0", "package-0", 0)
    with ReaderProcess(sysfs=board, provider=provider) as reader:
        found = reader.next(has_power, "a reading")
    assert (found.provider, found.refused) == (provider, {})
    assert found.mean == (provider == "rapl"), "a counter's difference is a mean"


def test_without_a_source_power_is_absent_and_the_rest_is_there(tmp_path):
    board = fake_sysfs.build(tmp_path, rails={})
    with ReaderProcess(sysfs=board) as reader:
        found = reader.next(any_reading, "a reading")
    assert (found.provider, found.watts, found.rails) == ("none", None, {})
    assert set(found.refused) == {"jtop", "ina3221", "rapl"}
    assert found.celsius["tj"] == 47.3


def test_every_source_of_the_reader_can_be_configured():
    choices = get_args(PowerSettings.model_fields["provider"].annotation)
    assert choices == ("auto", *PROVIDERS, "none")


def test_none_asks_no_source(board):
    with ReaderProcess(sysfs=board, provider="none") as reader:
        found = reader.next(any_reading, "a reading")
    assert (found.provider, found.watts, found.refused) == ("none", None, {})


def test_a_source_that_goes_is_replaced_and_taken_again_when_it_is_back(board):
    chip = board / fake_sysfs.HWMON
    counter = rapl(board, "intel-rapl:0", "package-0", 0)
    with ReaderProcess(sysfs=board) as reader:
        reader.next(lambda r: r.provider == "ina3221", "the chip")
        shutil.move(chip, board / "gone")
        lost = reader.next(lambda r: r.provider != "ina3221", "the chip to go")
        assert lost.provider == "none"
        assert lost.refused["ina3221"] == "lost: the INA3221's total cannot be read"
        instead = reader.next(lambda r: r.provider == "rapl", "RAPL")
        assert "no INA3221" in instead.refused["ina3221"]
        shutil.move(board / "gone", chip)
        back = reader.next(lambda r: r.provider == "ina3221", "the chip again")
        assert (back.watts, set(back.refused)) == (7.0, {"jtop"})
        assert counter.exists()


def test_a_source_that_hangs_is_given_up(board):
    """A read that never returns, as of a stuck bus: here a pipe without a writer."""
    current = board / fake_sysfs.HWMON / "curr1_input"
    with ReaderProcess(sysfs=board, provider="ina3221") as reader:
        reader.next(has_power, "a reading")
        current.unlink()
        os.mkfifo(current)
        lost = reader.next(lambda r: not has_power(r), "the source to be given up")
        assert lost.refused["ina3221"] == "lost: no answer within 0.4 s"
        current.unlink()
        fake_sysfs.set_rail(board, 1, ma=1000)
        assert reader.next(has_power, "its return").watts == 5.0


def test_a_source_that_hangs_from_the_start_holds_up_nothing_for_long(board):
    current = board / fake_sysfs.HWMON / "curr1_input"
    current.unlink()
    os.mkfifo(current)
    with ReaderProcess(sysfs=board) as reader:
        found = reader.next(any_reading, "a line")
    assert found.provider == "none"
    assert found.refused["ina3221"] == "no answer within 1.9 s"


def test_rapl_gives_a_first_reading_long_before_a_long_interval_is_over(board):
    rapl(board, "intel-rapl:0", "package-0", 0)
    with ReaderProcess(sysfs=board, provider="rapl", interval_seconds=60) as reader:
        assert reader.next(has_power, "a reading").interval_seconds == 60


@pytest.mark.parametrize(
    ("interval_seconds", "seconds"), [(0.1, 1.9), (1, 5.5), (10, 15), (30, 35), (60, 65)]
)
def test_a_source_may_take_an_interval_to_open_and_a_little(interval_seconds, seconds):
    assert opening_seconds(interval_seconds) == pytest.approx(seconds)


class HungJtop:
    """A client of jtop's whose service answers nothing for a while."""

    power: ClassVar = {"tot": {"power": 7000}}
    temperature = memory = gpu = MappingProxyType({})
    nvpmodel = None
    answers, closed = threading.Event(), threading.Event()

    def __init__(self, interval: float) -> None:
        self.interval = interval

    def start(self) -> None:
        pass

    def ok(self) -> bool:
        return self.answers.wait(20)

    @property
    def stats(self) -> dict:
        return {"time": time.monotonic()}

    def close(self) -> None:
        self.closed.set()


def test_a_jtop_that_is_given_up_while_it_opens_is_let_go_when_it_answers(tmp_path, monkeypatch):
    package = types.ModuleType("jtop")
    package.jtop, package.service = HungJtop, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "jtop", package)
    monkeypatch.setattr(JtopProvider, "_thread", None)
    monkeypatch.setattr(power_reader, "opening_seconds", lambda _: 0.3)
    path = str(tmp_path / "jtop.sock")
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(path)
        openers = {"jtop": lambda: JtopProvider(0.5, path)}
        reader = power_reader.PowerReader(openers, lambda fields: fields, 0.5)
        assert reader.read()["refused"] == {"jtop": "no answer within 0.3 s"}
        HungJtop.answers.set()
        assert HungJtop.closed.wait(30), "the connection stayed"


def test_it_ends_with_the_server(board):
    with ReaderProcess(sysfs=board) as reader:
        reader.next(any_reading, "a reading")
        reader.process.stdin.close()
        assert reader.process.wait(10) == 0


def test_signals_to_the_group_are_for_the_server_to_obey(board):
    with ReaderProcess(sysfs=board) as reader:
        reader.next(any_reading, "a reading")
        reader.process.send_signal(signal.SIGTERM)
        reader.process.send_signal(signal.SIGINT)
        reader.next(any_reading, "a reading after them")


def test_it_ends_when_nobody_reads(board):
    command = reader_command(PowerSettings(interval_seconds=0.1, sysfs=board))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_what_a_library_prints_is_no_reading(board):
    package = board / "jtop"
    package.mkdir()
    (package / "__init__.py").write_text("print('hello'); raise ImportError('too old')")
    with ReaderProcess(sysfs=board, environment={"PYTHONPATH": str(board)}) as reader:
        found = reader.next(has_power, "a reading")
        reader.process.kill()
        assert reader.process.stderr.read() == b"hello\n"
    assert found.refused == {"jtop": "jetson-stats is not installed here (too old)"}
    assert all(reader.decoded(line) for line in reader.lines)
