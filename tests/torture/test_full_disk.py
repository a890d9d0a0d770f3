"""R8: a disk that is full, or read-only, costs ingest alone, and only until it is back."""

from __future__ import annotations

import pytest

from tests.torture.filesystems import fill
from tests.torture.full_disk import BACK_SECONDS, DiskFaults, read_only, start_read_only

FULL_CYCLES = 50
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("disk", [("tmpfs", 24), ("ext4", 64)], indirect=True)
def test_a_full_disk_costs_ingest_alone(zygote, disk, tmp_path, size, progress, record):
    faults = DiskFaults(zygote, tmp_path, disk.point / "var")
    filled = faults.run(
        size("--fills"),
        lambda: fill(disk.point),
        lambda: (disk.point / "filler").unlink(missing_ok=True),
        "disk is full",
        progress=progress,
    )
    record(filled)
    assert filled.broken == []
    assert filled.cycles == size("--fills")
    assert filled.predictions > filled.cycles
    if filled.cycles >= FULL_CYCLES:
        assert max(filled.back_seconds) <= BACK_SECONDS


def test_a_read_only_disk_costs_ingest_alone(zygote, fault_shim, tmp_path, size, progress, record):
    store = tmp_path / "var"
    faults = DiskFaults(zygote, tmp_path, store)
    fail = read_only(fault_shim, store)
    filled = faults.run(size("--fills"), fail, fault_shim.disarm, "read-only", progress=progress)
    record(filled)
    assert filled.broken == []
    assert filled.cycles == size("--fills")
    assert filled.predictions > filled.cycles
    if filled.cycles >= FULL_CYCLES:
        assert max(filled.back_seconds) <= BACK_SECONDS


@pytest.mark.parametrize("disk", ["tmpfs", "ext4"], indirect=True)
def test_it_starts_on_a_read_only_disk_and_predicts(zygote, disk, tmp_path, record):
    filled = start_read_only(zygote, tmp_path, disk)
    record(filled)
    assert filled.broken == []
    assert filled.predictions > 0
