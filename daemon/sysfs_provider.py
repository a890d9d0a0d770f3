"""Readings from files: the board's INA3221 rails, and what the kernel tells of any machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from daemon.power_provider import Fields, ProviderError, read_number, read_text

TOTAL_RAIL = "VDD_IN"  # what the board takes in; the other rails are parts of it
# In the device tree; video engines scale their frequency too.
_GPU_NAMES = ("gpu", "ga10b", "gv11b", "gp10b")
_NVPMODEL_SECONDS = 10.0
_NVPMODEL_TIMEOUT_SECONDS = 2.0


class Ina3221Provider:
    """INA3221 power monitors on the I2C bus.

    Args:
        interval_seconds: Between two readings.
        sysfs: Usually `/sys`.

    Raises:
        ProviderError: No such monitor, or none with a readable rail.
    """

    name = "ina3221"
    paced = False

    def __init__(self, interval_seconds: float, sysfs: Path) -> None:
        self.interval_seconds = interval_seconds
        devices = sysfs / "bus/i2c/devices"
        self._rails: dict[str, tuple[Path, Path]] = {}
        for folder in sorted(devices.glob("*/hwmon/hwmon*")):
            if read_text(folder.parents[1] / "name") == "ina3221":
                self._rails |= _rails(folder)
        if not self._rails:
            raise ProviderError(f"no INA3221 with a labelled rail under {devices}")
        self.read()

    def read(self) -> Fields:
        """See `Provider.read`."""
        rails = {}
        for name, (millivolts, milliamperes) in self._rails.items():
            volts, amperes = read_number(millivolts), read_number(milliamperes)
            if volts is not None and amperes is not None:
                # An idle rail's shunt reads some mA either side of nothing.
                rails[name] = max(volts * amperes, 0.0) / 1e6
        if TOTAL_RAIL in self._rails:
            total = rails.pop(TOTAL_RAIL, None)
        else:  # as jtop has it on boards without that rail
            total = sum(rails.values()) if len(rails) == len(self._rails) else None
        if total is None:
            raise ProviderError("the INA3221's total cannot be read")
        return {"watts": total, "rails": rails}

    def close(self) -> None:
        """See `Provider.close`."""


def _rails(folder: Path) -> dict[str, tuple[Path, Path]]:
    rails = {}
    for label in sorted(folder.glob("in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        files = folder / f"in{number}_input", folder / f"curr{number}_input"
        name = read_text(label)
        # A channel without a current file is the chip's sum of shunt voltages; NC: not connected.
        if name and name != "NC" and all(file.exists() for file in files):
            rails[name] = files
    return rails


class HostFiles:
    """What is known of any machine: temperatures, memory, GPU load, throttling, power mode.

    Args:
        sysfs: Usually `/sys`.
        procfs: Usually `/proc`.
    """

    def __init__(self, sysfs: Path, procfs: Path) -> None:
        self._sysfs, self._procfs = sysfs, procfs
        self._events: float | None = None
        self._nvpmodel: str | None = None
        self._nvpmodel_at = -_NVPMODEL_SECONDS

    def fill(self, fields: Fields) -> Fields:
        """The same fields and those that are missing; a provider's own come first."""
        readers = {
            "celsius": self._celsius,
            "gpu_ratio": self._gpu_ratio,
            "nvpmodel": self._power_mode,
            "throttled": self._throttled,
        }
        found = {key: read() for key, read in readers.items() if key not in fields}
        return self._memory() | {k: v for k, v in found.items() if v is not None} | fields

    def _celsius(self) -> dict[str, float]:
        """By zone, as jtop calls them; zones that are off are absent."""
        zones: dict[str, float] = {}
        for folder in sorted((self._sysfs / "devices/virtual/thermal").glob("thermal_zone*")):
            kind, value = read_text(folder / "type"), read_number(folder / "temp")
            if kind and value is not None:
                name = re.sub(r"[-_]thermal$", "", kind)
                if name in zones:  # several of one kind: told apart by the kernel's number
                    name += folder.name.removeprefix("thermal_zone")
                zones[name] = value / 1000
        return zones

    def _gpu_ratio(self) -> float | None:
        for device in sorted((self._sysfs / "class/devfreq").glob("*/device")):
            if read_text(device / "of_node/name") in _GPU_NAMES:
                per_mille = read_number(device / "load")
                return None if per_mille is None else per_mille / 1000
        return None

    def _throttled(self) -> bool | None:
        """Whether the board counted an over-current event since the last reading."""
        files = (self._sysfs / "class/hwmon").glob("hwmon*/oc*_event_cnt")
        counts = [count for file in files if (count := read_number(file)) is not None]
        if not counts:
            return None
        before, self._events = self._events, sum(counts)
        return before is not None and self._events > before

    def _memory(self) -> Fields:
        text = read_text(self._procfs / "meminfo") or ""
        lines = {key: int(kb) * 1024 for key, kb in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
        fields: Fields = {}
        if "MemTotal" in lines and "MemAvailable" in lines:
            fields["ram_total_bytes"] = lines["MemTotal"]
            fields["ram_used_bytes"] = lines["MemTotal"] - lines["MemAvailable"]
        if "NvMapMemUsed" in lines:  # what a Tegra's GPU has of the RAM that both share
            fields["ram_gpu_bytes"] = lines["NvMapMemUsed"]
        return fields

    def _power_mode(self) -> str | None:
        """The name from `nvpmodel -q`, asked now and then: it is a program to be started."""
        now = time.monotonic()
        if now - self._nvpmodel_at >= _NVPMODEL_SECONDS:
            self._nvpmodel_at, self._nvpmodel = now, _ask_nvpmodel()
        return self._nvpmodel


def _ask_nvpmodel() -> str | None:
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the board's own program
            [program, "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_NVPMODEL_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^NV Power Mode: *(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else None
