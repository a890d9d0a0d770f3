"""Readings from RAPL, the energy counters of x86 processors: their packages, not the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from daemon.power_provider import Fields, ProviderError, read_number, read_text

_FIRST_SECONDS = 1.0  # enough for a mean; the first reading is not kept back for an interval


@dataclass
class _Domain:
    name: str
    package: bool
    file: Path
    range_microjoules: float
    last_microjoules: float
    last_seconds: float


class RaplProvider:
    """Power as the difference of two readings of an energy counter.

    Args:
        interval_seconds: Between two readings.
        sysfs: Usually `/sys`.

    Raises:
        ProviderError: No RAPL, or its counters may not be read (root alone may, by default).
    """

    name = "rapl"
    paced = True

    def __init__(self, interval_seconds: float, sysfs: Path) -> None:
        self.interval_seconds = interval_seconds
        self._next_seconds = min(interval_seconds, _FIRST_SECONDS)
        folders = sorted((sysfs / "class/powercap").glob("intel-rapl:*"))
        if not folders:
            raise ProviderError(f"no intel-rapl under {sysfs / 'class/powercap'}")
        names = {folder.name: read_text(folder / "name") or folder.name for folder in folders}
        self._domains = []
        for folder in folders:
            zone, counter = folder.name, folder / "energy_uj"
            count, size = read_number(counter), read_number(folder / "max_energy_range_uj")
            if count is None or size is None:
                continue
            parent = zone.rpartition(":")[0]
            name = f"{names[parent]}/{names[zone]}" if parent in names else names[zone]
            package = names[zone].startswith("package")
            domain = _Domain(name, package, counter, size, count, time.monotonic())
            self._domains.append(domain)
        if not any(domain.package for domain in self._domains):
            raise ProviderError(f"the counters under {folders[0].parent} may not be read")

    def read(self) -> Fields:
        """See `Provider.read`. Mean power since the last reading, or since it was opened."""
        due = self._domains[0].last_seconds + self._next_seconds
        time.sleep(max(due - time.monotonic(), 0.0))
        self._next_seconds = self.interval_seconds
        rails, total = {}, 0.0
        for domain in self._domains:
            watts = _mean_watts(domain)
            if watts is None:
                if domain.package:
                    raise ProviderError(f"{domain.file} cannot be read any more")
                continue
            rails[domain.name] = watts
            total += watts if domain.package else 0.0
        return {"watts": total, "rails": rails, "mean": True}

    def close(self) -> None:
        """See `Provider.close`."""


def _mean_watts(domain: _Domain) -> float | None:
    now, count = time.monotonic(), read_number(domain.file)
    if count is None:
        return None
    used = count - domain.last_microjoules
    if used < 0:  # the counter has begun again at 0
        used += domain.range_microjoules
    seconds = now - domain.last_seconds
    domain.last_microjoules, domain.last_seconds = count, now
    return used / 1e6 / seconds
