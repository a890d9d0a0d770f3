"""R4: a swap drops nothing, tears nothing and costs nothing that lasts."""

from __future__ import annotations

import pytest

from tests.torture.swaps import PREDICTIONS_A_SWAP, swap_under_load

_FULL_SWAPS = 10_000


@pytest.mark.timeout(1800)
def test_no_answer_is_dropped_or_torn_by_a_swap(zygote, tmp_path, size, seed, progress, record):
    swaps = size("--swaps")
    found = swap_under_load(zygote, tmp_path, swaps, seed, progress=progress)
    record(found)
    assert found.broken == []
    assert (found.failed, found.torn, found.unknown, found.stale) == (0, 0, 0, 0)
    assert found.swaps >= swaps
    assert all(found.results[kind] for kind in ("swapped", "rolled_back", "activated"))
    assert found.results["failed"] == 0
    assert {"accuracy", "damaged", "canary"} <= found.refused.keys()
    assert found.pauses_above_2_ms <= 0.01 * found.swaps
    assert found.predictions >= PREDICTIONS_A_SWAP * swaps
    # A version that stayed would be 0.1 MiB each time, a file one descriptor.
    assert found.resident_growth_kib < (1024 if swaps >= _FULL_SWAPS else 30 * 1024)
    assert found.descriptors[1] - found.descriptors[0] <= 8
    slowest = max(found.hundredth_swaps, found.last_swaps)
    assert slowest < (1.5 if swaps >= _FULL_SWAPS else 4) * found.first_swaps
