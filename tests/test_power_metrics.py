"""Metrics of power and of the machine: base units, and absent rather than old or zero."""

from __future__ import annotations

import os
import re
import time

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from daemon.power import PowerMonitor
from daemon.power_log import PowerLog
from daemon.power_metrics import HostMetrics, PowerMetrics
from tests.power_fixtures import reading

# What is there before anything has been read: counts of what happened, and whether power is known.
ALWAYS = {
    "ffedge_power_up",
    "ffedge_power_reader_restarts_total",
    "ffedge_power_readings_refused_total",
    "ffedge_power_log_up",
    "ffedge_power_gap_seconds_total",
}
WHOLE = {
    "rails": {"VDD_SOC": 2.1, "VDD_CPU_GPU_CV": 2.4},
    "celsius": {"cpu": 47.25, "tj": -3.0},
    "ram_gpu_bytes": 200_000_000,
    "gpu_ratio": 0.35,
    "nvpmodel": "25W",
    "throttled": True,
}
NOTHING = {"watts": 0.0, "rails": {"VDD_SOC": 0.0}, "gpu_ratio": 0.0, "ram_gpu_bytes": 0}


class Monitored:
    """A monitor without its reader, given readings of some seconds ago."""

    def __init__(self, folder) -> None:
        self.monitor = PowerMonitor([], 1.0, PowerLog(folder))
        self.registry = CollectorRegistry()
        self.registry.register(PowerMetrics(self.monitor))

    def read(self, *ages_seconds: float, **fields: object) -> None:
        for age in ages_seconds:
            at = time.monotonic() - age
            self.monitor._newest = made = reading(monotonic_seconds=at, **fields)
            if made.watts is not None:
                self.monitor._meter.add(at, made.watts, made.rails, 5.0)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def names(self) -> set[str]:
        return {s.name for family in self.registry.collect() for s in family.samples}


@pytest.fixture
def board(tmp_path) -> Monitored:
    return Monitored(tmp_path)


def test_before_the_first_reading_nothing_is_known(board):
    assert board.names() == ALWAYS
    assert board.value("ffedge_power_up") == 0
    assert board.value("ffedge_power_log_up") == 1
    assert board.value("ffedge_power_readings_refused_total", reason="version") == 0


def test_a_reading_is_shown_in_base_units(board):
    board.read(2.0, 1.0, 0.0, **WHOLE)
    assert board.value("ffedge_power_up") == 1
    assert 0 <= board.value("ffedge_power_age_seconds") < 60
    assert board.value("ffedge_power_info", provider="jtop", nvpmodel="25W") == 1
    assert board.value("ffedge_board_power_watts") == 7.0
    assert board.value("ffedge_rail_power_watts", rail="VDD_SOC") == 2.1
    assert board.value("ffedge_temperature_celsius", zone="tj") == -3.0
    assert board.value("ffedge_gpu_utilization_ratio") == 0.35
    assert board.value("ffedge_ram_gpu_used_bytes") == 200_000_000
    assert board.value("ffedge_board_throttled") == 1
    assert board.value("ffedge_board_energy_joules_total") == pytest.approx(14.0, rel=0.01)
    assert board.value("ffedge_rail_energy_joules_total", rail="VDD_SOC") == pytest.approx(
        4.2, rel=0.01
    )
    assert board.value("ffedge_learn_energy_joules_total") == 0


def test_nothing_that_was_read_is_zero(board):
    board.read(0.0, **NOTHING)
    assert board.value("ffedge_power_up") == 1
    assert board.value("ffedge_board_power_watts") == 0
    assert board.value("ffedge_rail_power_watts", rail="VDD_SOC") == 0
    assert board.value("ffedge_gpu_utilization_ratio") == 0
    assert board.value("ffedge_ram_gpu_used_bytes") == 0
    assert board.value("ffedge_board_throttled") is None


def test_an_old_reading_is_absent_and_its_energy_stays(board):
    board.read(8.0, 7.0, **WHOLE)
    counted = {"ffedge_board_energy_joules_total", "ffedge_rail_energy_joules_total"}
    kept = ALWAYS | counted | {"ffedge_learn_energy_joules_total", "ffedge_power_age_seconds"}
    assert board.names() == kept
    assert board.value("ffedge_power_up") == 0
    assert board.value("ffedge_power_age_seconds") >= 7


def test_a_reading_without_power_shows_the_rest(board):
    board.read(0.0, **WHOLE | {"watts": None, "rails": {}, "provider": "none"})
    assert board.value("ffedge_power_up") == 0
    assert board.value("ffedge_board_power_watts") is None
    assert board.value("ffedge_temperature_celsius", zone="cpu") == 47.25
    assert board.value("ffedge_power_info", provider="none", nvpmodel="25W") == 1


def test_the_cost_of_learning_is_shown_once_something_was_learned(board):
    board.monitor.learning_began()
    board.monitor.learning_ended(10, accepted=False)
    assert board.value("ffedge_learn_sample_energy_joules") is None, "power was not known"
    board.monitor._meter.learning.begin(time.monotonic() - 2)
    board.read(1.0, 0.0)
    board.monitor.learning_ended(10, accepted=True)
    assert board.value("ffedge_learn_energy_joules_total") == pytest.approx(7.0, rel=0.01)
    sample, version = (
        board.value(f"ffedge_learn_{what}_energy_joules") for what in ("sample", "version")
    )
    assert sample == pytest.approx(version / 20, rel=1e-6)
    assert version == pytest.approx(14.0, rel=0.1), "one second of the two was seen"


def test_the_machine_and_our_processes_are_read_at_each_scrape():
    registry = CollectorRegistry()
    gone = max(psutil.pids()) + 100_000
    registry.register(HostMetrics({"learner": lambda: None, "power_reader": lambda: gone}))
    value = registry.get_sample_value
    total = value("ffedge_ram_total_bytes")
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < value("ffedge_ram_used_bytes") < total
    assert value("ffedge_swap_used_bytes") >= 0
    own = value("ffedge_process_resident_bytes", {"process": "server"})
    assert 1 << 20 < own < total
    assert value("ffedge_process_resident_bytes", {"process": "learner"}) is None
    assert value("ffedge_process_resident_bytes", {"process": "power_reader"}) is None
    cores = [value("ffedge_cpu_utilization_ratio", {"core": str(n)}) for n in range(os.cpu_count())]
    assert all(0 <= busy <= 1 for busy in cores)


def test_names_have_one_prefix_base_units_and_a_help_text(board):
    board.registry.register(HostMetrics({}))
    families = [*board.registry.collect()]
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"ffedge(_[a-z]+)+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        unit = r"_(watts|joules|celsius|bytes|seconds|ratio|up|info|restarts|refused|throttled)$"
        assert re.search(unit, family.name), family.name
    for name in re.findall(
        r"^# TYPE (\w+) counter", generate_latest(board.registry).decode(), re.M
    ):
        assert name.endswith("_total"), name
