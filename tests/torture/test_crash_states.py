"""R3: of what was not synced any part may be missing or torn, and nothing acknowledged is."""

from __future__ import annotations

import pytest

from tests.torture.crash_states import draw_states


@pytest.mark.timeout(900)
def test_no_crash_state_lacks_what_was_acknowledged(
    zygote, fault_shim, memory_path, size, seed, progress, record
):
    states = size("--crash-states")
    found = draw_states(zygote, fault_shim, memory_path, states, seed, progress=progress)
    record(found)
    assert found.broken == []
    assert found.states == states
    assert found.acknowledged > states
