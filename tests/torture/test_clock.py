"""R19: a wall clock that jumps orders nothing, ages nothing, and makes no duration negative."""

from __future__ import annotations

import pytest

from tests.torture.clock import SETTINGS, jump


@pytest.mark.timeout(900)
def test_clock_jumps_are_harmless(zygote, fault_shim, tmp_path, size, progress, record):
    jumped = jump(zygote, fault_shim, tmp_path, size("--jumps"), progress=progress, **SETTINGS)
    record(jumped)
    assert jumped.broken == []
    assert jumped.jumps >= size("--jumps")
    assert jumped.acknowledged == 258 * jumped.jumps
