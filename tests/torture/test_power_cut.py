"""R2: what was acknowledged survives the loss of power, and what is replaced is there whole."""

from __future__ import annotations

import pytest

from tests.torture.power_cut import cut_daemon, cut_replacement, cut_store

ON_DISK = pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
pytestmark = pytest.mark.timeout(900)


@ON_DISK
def test_the_store_loses_nothing_to_a_power_cut(
    zygote, disk, tmp_path, size, seed, progress, record
):
    cycles = size("--power-cuts")
    cut = cut_store(zygote, disk, tmp_path, cycles, seed, progress=progress)
    record(cut)
    assert cut.broken == []
    assert cut.cycles == cycles
    assert cut.acknowledged > cycles


@ON_DISK
def test_the_control_loses(zygote, disk, tmp_path, size, seed, record):
    """Without a sync at each commit nine of ten cuts lose, or this harness sees no loss."""
    cycles = max(10, size("--power-cuts") // 20)
    cut = cut_store(zygote, disk, tmp_path, cycles, seed, ["synchronous_normal"], go_on=True)
    record(cut)
    assert cut.cycles == cycles
    assert cut.losing >= 0.9 * cycles


@ON_DISK
def test_the_daemon_loses_nothing_to_a_power_cut(
    zygote, disk, tmp_path, size, seed, progress, record
):
    cycles = max(2, size("--power-cuts") // 20)
    cut = cut_daemon(zygote, disk, tmp_path, cycles, seed, progress=progress)
    record(cut)
    assert cut.broken == []
    assert cut.cycles == cycles
    assert cut.acknowledged > cycles


@ON_DISK
def test_a_replaced_file_survives_a_power_cut(zygote, disk, tmp_path, size, seed, record):
    cycles = max(5, size("--power-cuts") // 10)
    cut = cut_replacement(zygote, disk, tmp_path, cycles, seed)
    record(cut)
    assert cut.broken == []
    assert cut.cycles == cycles
