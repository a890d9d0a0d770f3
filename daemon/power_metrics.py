"""Metrics of power, memory and temperature, made at each scrape from what is known then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from daemon.power import PowerMonitor
from daemon.power_reading import REASONS

Family = GaugeMetricFamily | CounterMetricFamily


class PowerMetrics(Collector):
    """What a power monitor knows.

    Args:
        monitor: Asked at each scrape.
    """

    def __init__(self, monitor: PowerMonitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterator[Family]:
        """See `Collector.collect`. Without a fresh reading most of them are absent."""
        yield from self._reader()
        yield from self._now()
        yield from self._energy()

    def _reader(self) -> Iterator[Family]:
        monitor = self._monitor
        yield _gauge("ffedge_power_up", "Whether the board's power is known.", monitor.up)
        age = None
        if (newest := monitor.newest) is not None:
            age = time.monotonic() - newest.monotonic_seconds
        yield _gauge("ffedge_power_age_seconds", "Age of the newest reading.", age)
        yield _counter(
            "ffedge_power_reader_restarts", "Times the power reader ended.", monitor.restarts
        )
        refused = CounterMetricFamily(
            "ffedge_power_readings_refused", "Lines that were no reading.", labels=["reason"]
        )
        for reason in REASONS:
            refused.add_metric([reason], monitor.refused[reason])
        yield refused
        yield _gauge("ffedge_power_log_up", "Whether the power log is kept.", monitor.log.up)

    def _now(self) -> Iterator[Family]:
        reading = self._monitor.reading
        info = GaugeMetricFamily("ffedge_power_info", "Always 1.", labels=["provider", "nvpmodel"])
        if reading is not None:
            info.add_metric([reading.provider, reading.nvpmodel or ""], 1)
        yield info
        watts, gpu, ram_gpu, throttled = (
            (None, None, None, None)
            if reading is None
            else (reading.watts, reading.gpu_ratio, reading.ram_gpu_bytes, reading.throttled)
        )
        rails, celsius = ({}, {}) if reading is None else (reading.rails, reading.celsius)
        yield _gauge("ffedge_board_power_watts", "What the board takes in.", watts)
        yield _gauges("ffedge_rail_power_watts", "Parts of it.", "rail", rails)
        yield _gauges("ffedge_temperature_celsius", "Temperatures.", "zone", celsius)
        yield _gauge("ffedge_gpu_utilization_ratio", "How busy the GPU is.", gpu)
        yield _gauge("ffedge_ram_gpu_used_bytes", "RAM that the GPU holds.", ram_gpu)
        yield _gauge(
            "ffedge_board_throttled", "Whether over-current throttled it just now.", throttled
        )

    def _energy(self) -> Iterator[Family]:
        energy = self._monitor.energy()
        yield _counter("ffedge_board_energy_joules", "Energy of the board.", energy.board)
        rails = CounterMetricFamily(
            "ffedge_rail_energy_joules", "Energy of its parts.", labels=["rail"]
        )
        for rail, joules in energy.rails.items():
            rails.add_metric([rail], joules)
        yield rails
        yield _counter(
            "ffedge_power_gap_seconds", "Time between readings too far apart.", energy.gap_seconds
        )
        yield _counter(
            "ffedge_learn_energy_joules", "Energy of the board while it learns.", energy.learning
        )
        yield _gauge(
            "ffedge_learn_sample_energy_joules",
            "Mean energy of learning over samples learned.",
            energy.per_sample,
        )
        yield _gauge(
            "ffedge_learn_version_energy_joules",
            "Mean energy of learning over versions accepted.",
            energy.per_version,
        )


class HostMetrics(Collector):
    """Memory and processor of this machine and of our processes.

    Args:
        processes: Process ids by name, besides our own; None while one does not run.
    """

    def __init__(self, processes: Mapping[str, Callable[[], int | None]]) -> None:
        self._processes: dict[str, Callable[[], int | None]] = {
            "server": lambda: psutil.Process().pid,
            **processes,
        }
        psutil.cpu_percent(percpu=True)  # a reading is over the time since the one before

    def collect(self) -> Iterator[Family]:
        """See `Collector.collect`."""
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        yield _gauge("ffedge_ram_used_bytes", "RAM that is not available.", used)
        yield _gauge("ffedge_ram_total_bytes", "All RAM.", memory.total)
        yield _gauge("ffedge_swap_used_bytes", "Swap in use.", psutil.swap_memory().used)
        cores = enumerate(psutil.cpu_percent(percpu=True))
        ratios = {str(core): percent / 100 for core, percent in cores}
        yield _gauges(
            "ffedge_cpu_utilization_ratio", "How busy it was since the last scrape.", "core", ratios
        )
        resident = {}
        for name, pid in self._processes.items():
            if (number := pid()) is not None:
                try:
                    resident[name] = psutil.Process(number).memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
        yield _gauges("ffedge_process_resident_bytes", "RAM of our processes.", "process", resident)


def _gauge(name: str, text: str, value: float | None) -> Family:
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _counter(name: str, text: str, value: float | None) -> Family:
    family = CounterMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
