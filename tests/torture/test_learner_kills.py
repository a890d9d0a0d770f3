"""R15: a learner's death touches no request, and it learns again within 10 s."""

from __future__ import annotations

import random

import pytest

from tests.torture import memory_group
from tests.torture.learner_kills import (
    AGAIN_SECONDS,
    BURST,
    FAULT,
    HANG_SECONDS,
    KILL,
    STOP,
    LearnerKilled,
    harm_learner,
)

# A short run on a busy machine says nothing of speed.
_FULL_FAULTS = 50
# One fault in so many is a SIGSEGV, and one a stop.
_ONE_IN = 5


@pytest.mark.timeout(3600)
def test_a_learner_that_is_killed_or_stopped(tmp_path, size, seed, progress, record):
    kills = size("--learner-kills")
    faults = [KILL] * kills
    faults[::_ONE_IN] = [FAULT] * len(faults[::_ONE_IN])
    faults += [STOP] * max(1, kills // _ONE_IN)
    random.Random(seed).shuffle(faults)
    found = harm_learner(tmp_path, faults, seed, progress=progress)
    record(found)
    assert found.broken == []
    assert found.kills >= kills
    assert found.stops >= 1
    assert len(found.again_seconds) == kills
    assert found.predictions > 20 * len(faults)
    if kills >= _FULL_FAULTS:
        assert_back_in_time(found)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(memory_group.missing() is not None, reason=str(memory_group.missing()))
def test_a_learner_that_the_kernel_kills_for_memory(tmp_path, size, seed, progress, record):
    """The daemon has a limit as under systemd, and the learner is first in line."""
    ooms = size("--learner-ooms")
    found = harm_learner(tmp_path, [BURST] * ooms, seed, progress=progress)
    record(found)
    assert found.broken == []
    assert found.ooms == len(found.again_seconds) == ooms
    if ooms >= _FULL_FAULTS:
        assert_back_in_time(found)


def assert_back_in_time(found: LearnerKilled) -> None:
    assert max(found.again_seconds) <= AGAIN_SECONDS
    assert max(found.stop_seconds, default=0.0) <= AGAIN_SECONDS + HANG_SECONDS
