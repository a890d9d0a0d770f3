"""R9 and R3: no file operation that fails, or is cut off, becomes an acknowledgement."""

from __future__ import annotations

import random

import pytest

from tests.torture import filesystems
from tests.torture.filesystems import mounted
from tests.torture.io_errors import FailurePoints

pytestmark = pytest.mark.timeout(900)


def test_no_failed_operation_becomes_an_acknowledgement(
    zygote, fault_shim, tmp_path, size, seed, progress, record
):
    points = size("--io-points")
    if filesystems.missing("ext4"):
        lives = FailurePoints(zygote, fault_shim, tmp_path, None)
        moved = lives.move(chosen(lives.calls, points, seed), progress=progress)
    else:
        with mounted("ext4", tmp_path) as disk:
            lives = FailurePoints(zygote, fault_shim, tmp_path, disk)
            moved = lives.move(chosen(lives.calls, points, seed), progress=progress)
    record(moved)
    assert moved.broken == []
    assert moved.struck > 0.9 * moved.points > 0


def chosen(calls: int, points: int, seed: int) -> list[int]:
    """All operations, or so many of them."""
    everything = range(1, calls + 1)
    return sorted(random.Random(seed).sample(everything, min(points, calls)))
