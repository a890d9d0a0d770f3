"""R1 and R13: what was acknowledged survives a kill, and what was sent twice is kept once."""

from __future__ import annotations

import pytest

from tests.running import RunningDaemon
from tests.torture.killing import kill_under_load
from tests.torture.processes import ForkedDaemon

# From the start of the process; the promise, of a board at rest, is 5 s.
_READY_SECONDS = 20.0
_FULL_CYCLES = 100


@pytest.mark.timeout(900)
def test_no_acknowledged_sample_is_lost_by_kill_9(tmp_path, size, seed, progress, record):
    """The daemon as a user starts it, with its learner."""
    cycles = size("--kill-cycles")
    daemon = RunningDaemon(tmp_path, more='[power]\nprovider = "none"\n')
    killed = kill_under_load(daemon, tmp_path / "ledger", cycles, seed, progress=progress)
    record(killed)
    assert killed.broken == []
    assert killed.cycles == cycles
    assert killed.acknowledged > 20 * cycles
    if cycles >= _FULL_CYCLES:
        assert max(killed.ready_seconds) < _READY_SECONDS


@pytest.mark.timeout(900)
def test_a_retry_is_kept_once(zygote, tmp_path, size, seed, progress, record):
    """Three of ten requests are repeated, and all that a kill left unanswered."""
    posts = size("--retry-posts")
    daemon = ForkedDaemon(zygote, tmp_path / "home")
    killed = kill_under_load(
        daemon,
        tmp_path / "ledger",
        max(4, posts // 2000),
        seed,
        longest=min(4.0, posts / 1500),  # so that most posts meet a kill
        posts=posts,
        progress=progress,
    )
    record(killed)
    assert killed.broken == []
    assert killed.posts >= posts
