"""R19: a wall clock that jumps orders nothing, ages nothing, and makes no duration negative."""

from __future__ import annotations

import pytest

from tests.running import RunningDaemon, wait_for
from tests.torture.clock import HOUR, SETTINGS, YEAR, jump
from tests.torture.load import sample_body


@pytest.mark.timeout(900)
def test_clock_jumps_are_harmless(zygote, fault_shim, tmp_path, size, progress, record):
    jumped = jump(zygote, fault_shim, tmp_path, size("--jumps"), progress=progress, **SETTINGS)
    record(jumped)
    assert jumped.broken == []
    assert jumped.jumps >= size("--jumps")
    assert jumped.acknowledged == 258 * jumped.jumps


@pytest.mark.timeout(900)
def test_a_learner_learns_on_while_the_clock_jumps(fault_shim, tmp_path, size):
    """A daemon as a user starts it: its learner, its jobs and its checkpoint."""
    if size("--jumps") < 20:
        pytest.skip("a real learner and half a minute: run by make torture")
    environment = fault_shim.environment
    with RunningDaemon(tmp_path, environment=environment) as daemon:
        wait_for(daemon.learner_up, "the learner", 60)
        for number, seconds in enumerate((0, HOUR, -HOUR, 10 * YEAR, -10 * YEAR, 0)):
            fault_shim.shift_clock(seconds)
            samples = [sample_body(200 * number + place, None) for place in range(200)]
            answer = daemon.client.post("/samples", json={"samples": samples})
            assert answer.status_code == 201, answer.text
            learned = 150 * number  # a tenth of the samples only scores
            wait_for(
                lambda: (daemon.metric("ffedge_learn_samples_total") or 0) > learned,  # noqa: B023
                "learning to go on",
                60,
            )
        wait_for(daemon.settled, "learning", 60)
        jobs = daemon.client.get("/train").json()["jobs"]
        assert jobs
        assert all(job["state"] == "completed" and job["seconds"] >= 0 for job in jobs)
        assert daemon.restarts() == 0
