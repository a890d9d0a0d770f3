"""INA3221, RAPL and the kernel's files, read from made-up trees of known content."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from daemon.power_provider import ProviderError
from daemon.rapl_provider import RaplProvider
from daemon.sysfs_provider import HostFiles, Ina3221Provider
from tests.jtop_rig import fake_sysfs

MEMINFO = """\
MemTotal:        7990000 kB
MemFree:         1000000 kB
MemAvailable:    4990000 kB
NvMapMemUsed:     123456 kB
HugePages_Total:       0
"""


@pytest.fixture
def board(tmp_path) -> Path:
    return fake_sysfs.build(tmp_path / "sys")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def test_the_rails_are_in_watts_and_the_input_is_their_total(board):
    provider = Ina3221Provider(1.0, board)
    assert provider.read() == {"watts": 7.0, "rails": {"VDD_CPU_GPU_CV": 2.4, "VDD_SOC": 2.1}}
    fake_sysfs.set_rail(board, 1, mv=4990, ma=2003)
    fake_sysfs.set_rail(board, 3, ma=0)
    assert provider.read()["watts"] == pytest.approx(4.990 * 2.003)
    assert provider.read()["rails"]["VDD_SOC"] == 0.0


def test_a_board_without_an_input_rail_takes_the_sum_of_its_rails(tmp_path):
    rails = {1: ("VDD_GPU", 5000, 1000), 2: ("VDD_CPU", 5000, 400)}
    provider = Ina3221Provider(1.0, fake_sysfs.build(tmp_path, rails=rails))
    assert provider.read() == {"watts": 7.0, "rails": {"VDD_GPU": 5.0, "VDD_CPU": 2.0}}


def test_an_idle_rail_that_reads_less_than_nothing_takes_nothing(board):
    fake_sysfs.set_rail(board, 2, ma=-8)
    assert Ina3221Provider(1.0, board).read()["rails"]["VDD_CPU_GPU_CV"] == 0.0


def test_channels_that_are_not_connected_are_no_rails(tmp_path):
    rails = fake_sysfs.RAILS | {4: ("NC", 5000, 9999)}
    provider = Ina3221Provider(1.0, fake_sysfs.build(tmp_path, rails=rails))
    assert set(provider.read()["rails"]) == {"VDD_CPU_GPU_CV", "VDD_SOC"}


def test_a_rail_that_cannot_be_read_is_absent_and_without_the_input_there_is_no_reading(board):
    provider = Ina3221Provider(1.0, board)
    (board / fake_sysfs.HWMON / "curr3_input").write_text("")
    assert provider.read() == {"watts": 7.0, "rails": {"VDD_CPU_GPU_CV": 2.4}}
    (board / fake_sysfs.HWMON / "curr1_input").unlink()
    with pytest.raises(ProviderError, match="the INA3221's total cannot be read"):
        provider.read()


def test_a_machine_without_the_chip_says_what_was_wanted(tmp_path):
    with pytest.raises(ProviderError, match=r"no INA3221 with a labelled rail under .*i2c/devices"):
        Ina3221Provider(1.0, fake_sysfs.build(tmp_path, rails={}))


def test_another_chip_on_the_bus_is_not_taken_for_it(board):
    write(board / "bus/i2c/devices/1-0040/name", "ina219")
    with pytest.raises(ProviderError, match="no INA3221"):
        Ina3221Provider(1.0, board)


@pytest.fixture
def host(board) -> HostFiles:
    write(board.parent / "proc/meminfo", MEMINFO)
    return HostFiles(board, board.parent / "proc")


def test_the_kernel_tells_of_temperature_memory_and_gpu(board, host):
    fields = host.fill({})
    assert fields["celsius"] == {"cpu": 47.218, "gpu": 46.5, "soc0": 45.1, "tj": 47.3}
    assert fields["gpu_ratio"] == 0.35
    assert fields["ram_total_bytes"] == 7_990_000 * 1024
    assert fields["ram_used_bytes"] == 3_000_000 * 1024
    assert fields["ram_gpu_bytes"] == 123_456 * 1024
    fake_sysfs.set_temperature(board, 1, -5.25)
    fake_sysfs.set_gpu_load(board, 100)
    assert host.fill({})["celsius"]["gpu"] == -5.25
    assert host.fill({})["gpu_ratio"] == 1.0


def test_what_a_provider_says_comes_first(host):
    fields = host.fill({"celsius": {"cpu": 1.0}, "ram_used_bytes": 5, "gpu_ratio": 0.0})
    assert fields["celsius"] == {"cpu": 1.0}
    assert fields["ram_used_bytes"] == 5
    assert fields["gpu_ratio"] == 0.0
    assert fields["ram_total_bytes"] == 7_990_000 * 1024


def test_zones_of_one_kind_are_told_apart_and_those_that_are_off_are_absent(board, host):
    zones = board / "devices/virtual/thermal"
    write(zones / "thermal_zone4/type", "cpu-thermal")
    write(zones / "thermal_zone4/temp", 50_000)
    (zones / "thermal_zone1/temp").write_text("")
    celsius = host.fill({})["celsius"]
    assert celsius == {"cpu": 47.218, "cpu4": 50.0, "soc0": 45.1, "tj": 47.3}


def test_throttling_is_a_count_that_grew_since_the_last_reading(board, host):
    assert "throttled" not in host.fill({})
    write(board / "class/hwmon/hwmon2/oc1_event_cnt", 4)
    write(board / "class/hwmon/hwmon2/oc2_event_cnt", 0)
    found = [host.fill({})["throttled"]]
    for count in (4, 5, 5):
        write(board / "class/hwmon/hwmon2/oc1_event_cnt", count)
        found.append(host.fill({})["throttled"])
    assert found == [False, False, True, False]


def test_an_empty_machine_gives_nothing_and_no_error(tmp_path):
    assert HostFiles(tmp_path, tmp_path).fill({}) == {"celsius": {}}


@pytest.fixture
def nvpmodel(monkeypatch, tmp_path):
    """The fake command of the rig, its state in a file."""
    rig = Path(fake_sysfs.__file__).parent
    monkeypatch.setenv("PATH", f"{rig}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_NVP_STATE", str(tmp_path / "nvp"))
    return tmp_path / "nvp"


def test_the_power_mode_is_named_by_nvpmodel(host, nvpmodel):
    assert host.fill({})["nvpmodel"] == "25W"
    nvpmodel.write_text("2")
    assert host.fill({})["nvpmodel"] == "25W", "it is asked every ten seconds only"


@pytest.mark.parametrize("script", ["exit 1", "echo NV Power Mode:", "exec sleep 60"])
def test_an_nvpmodel_that_does_not_answer_is_no_power_mode(host, monkeypatch, tmp_path, script):
    program = tmp_path / "bin/nvpmodel"
    write(program, f"#!/bin/sh\n{script}")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("daemon.sysfs_provider._NVPMODEL_TIMEOUT_SECONDS", 0.2)
    assert "nvpmodel" not in host.fill({})


RANGE = 262_143_328_850


def rapl(root: Path, zone: str, name: str, microjoules: int, size: int = RANGE) -> Path:
    folder = root / "class/powercap" / zone
    write(folder / "name", name)
    write(folder / "max_energy_range_uj", size)
    write(folder / "energy_uj", microjoules)
    return folder / "energy_uj"


def mean_watts(provider: RaplProvider, change, joules: float) -> tuple[dict, float, float]:
    """A reading after a change, and the least and greatest power that the change may be."""
    begun = time.monotonic()
    provider.read()
    change()
    fields = provider.read()
    return fields, joules / (time.monotonic() - begun), joules / provider.interval_seconds


def test_rapl_gives_the_mean_power_of_packages_and_their_parts(tmp_path):
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    core = rapl(tmp_path, "intel-rapl:0:0", "core", 500)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 0)
    rapl(tmp_path, "intel-rapl:1:0", "dram", 7)
    provider = RaplProvider(0.1, tmp_path)

    def use() -> None:
        write(first, 3_000_000)
        write(core, 500_500)
        write(second, 1_000_000)

    fields, least, greatest = mean_watts(provider, use, 3.0)
    assert least <= fields["watts"] <= greatest
    rails = fields["rails"]
    assert rails["package-0"] + rails["package-1"] == fields["watts"]
    assert rails["package-0"] == pytest.approx(2 * rails["package-1"], rel=0.05)
    assert rails["package-0/core"] == pytest.approx(rails["package-0"] / 4, rel=0.05)
    assert rails["package-1/dram"] == 0.0
    assert fields["mean"] is True


def test_a_counter_that_begins_again_at_nothing_goes_on(tmp_path):
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", RANGE - 400_000)
    provider = RaplProvider(0.1, tmp_path)
    fields, least, greatest = mean_watts(provider, lambda: write(counter, 600_000), 1.0)
    assert least <= fields["watts"] <= greatest


def test_a_long_interval_keeps_only_later_readings_back(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    provider = RaplProvider(3.0, tmp_path)
    begun = time.monotonic()
    provider.read()
    first = time.monotonic()
    provider.read()
    assert 0.9 <= first - begun < 2.9
    assert time.monotonic() - first >= 2.9


def test_the_domains_of_another_interface_are_not_counted_twice(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    rapl(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    assert set(RaplProvider(0.01, tmp_path).read()["rails"]) == {"package-0"}


def test_counters_that_may_not_be_read_are_refused(tmp_path):
    with pytest.raises(ProviderError, match="no intel-rapl under"):
        RaplProvider(1.0, tmp_path)
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    provider = RaplProvider(0.01, tmp_path)
    counter.unlink()
    with pytest.raises(ProviderError, match="energy_uj cannot be read any more"):
        provider.read()
    counter.mkdir()  # what even root cannot read
    with pytest.raises(ProviderError, match=r"the counters under .* may not be read"):
        RaplProvider(1.0, tmp_path)
