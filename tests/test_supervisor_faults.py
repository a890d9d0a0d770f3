"""Learners that end, talk nonsense or do not listen: the server goes on and tries the next."""

from __future__ import annotations

import functools
import itertools
import sys
import time

import pytest

from daemon.errors import NotReadyError
from daemon.messages import MISCONFIGURED, Pace
from daemon.store.availability import Unavailable
from daemon.supervision import backoff, child
from daemon.supervision.jobs import JOBS
from engines import weights_digest
from tests.daemon_fixtures import (
    WAIT_SECONDS,
    alive,
    daemon_parts,
    job_states,
    made,
    network,
    put,
    restarts,
    running,
    starts,
)
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(backoff, "_LAST_SECONDS", 0.2)
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.5)


def waited(caplog) -> list[float]:
    """The pauses before each start but the first."""
    message = "learner ended"
    return [record.restart_seconds for record in caplog.records if record.message == message]


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


def test_a_learner_that_ends_is_started_again_ever_later(parts, caplog):
    with running(parts, "", prelude="import sys; sys.stdin.readline(); sys.exit(3)") as supervisor:
        wait_for(lambda: restarts(parts) >= 5, "five restarts")
        assert not supervisor.up
    ended = [record for record in caplog.records if record.message == "learner ended"]
    waits = waited(caplog)[:5]
    assert waits == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert {record.reason for record in ended} == {"crash"}
    assert {record.exit_code for record in ended} == {3}
    began = starts(parts)
    gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert all(gap >= wait for gap, wait in zip(gaps, waits, strict=False))


def test_a_learner_that_cannot_run_as_configured_is_left_alone_for_longer(
    parts, caplog, monkeypatch
):
    monkeypatch.setitem(backoff._LONG_SECONDS, "settings", 0.4)
    with running(parts, "", prelude=f"import sys; sys.exit({MISCONFIGURED})"):
        wait_for(lambda: restarts(parts) >= 2, "two restarts")
    assert waited(caplog)[:2] == [0.4, 0.4]
    assert restarts(parts, "settings") >= 2


def test_a_learner_that_ends_before_it_listens_is_started_again(parts):
    with running(parts, "", prelude="import os; os._exit(1)"):
        wait_for(lambda: restarts(parts) >= 4, "four restarts")


def test_an_unheard_verdict_does_not_end_the_supervision(parts):
    digest = weights_digest(put(parts.versions, network(2)))
    script = """
if begin["next_version"] == 2:
    ready()
    say("job_started", trigger="time", after_seq=0)
    os.close(0)
    propose(2, sys.argv[1])
    sys.exit(1)
ready(); until_closed()
"""
    with running(parts, script, digest) as supervisor:
        wait_for(lambda: restarts(parts) == 1, "the restart")
        wait_for(lambda: supervisor.up, "the next learner")
        assert parts.serving == 2


def test_a_command_that_cannot_be_started_is_tried_again(parts):
    program = parts.folder / "learner"
    supervisor = made(parts, [str(program)])
    supervisor.start()
    try:
        wait_for(lambda: restarts(parts) >= 1, "a failed start to be counted")
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S -c 'print(1)'\n")
        program.chmod(0o700)
        wait_for(lambda: restarts(parts) >= 3, "further starts")
    finally:
        supervisor.stop()


@pytest.mark.parametrize(
    "line",
    [
        b"Traceback: not a message",
        b'{"type": "begin", "active": 1, "sha256": "", "next_version": 2}',
        b'{"type": "progress", "samples": "many"}',
        b'{"type": "started", "more": ' + b"[" * 20_000,
        b"\xff\xfe",
        b"",
    ],
    ids=["text", "the server's own", "wrong type", "deep", "bytes", "empty"],
)
def test_a_learner_that_talks_nonsense_is_killed_and_started_again(parts, line):
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
if len(open(sys.argv[1]).readlines()) < 3:
    sys.stdout.buffer.write(bytes.fromhex(sys.argv[2]) + b"\\n")
    sys.stdout.flush()
time.sleep(600)
"""
    with running(parts, script, str(parts.folder / "starts"), line.hex()) as supervisor:
        wait_for(lambda: restarts(parts) == 2, "two restarts")
        wait_for(lambda: supervisor.up, "the third learner")
        states = [state for state, _ in job_states(parts)]
        assert states[-2:] == ["failed", "failed"]


def bug(*_: object) -> None:
    raise RuntimeError("a bug")


def test_a_promotion_that_fails_restarts_the_learner_and_serves_on(parts, monkeypatch):
    digest = weights_digest(put(parts.versions, network(2)))
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
propose(2, sys.argv[1])
until_closed()
"""
    with monkeypatch.context() as patch:
        patch.setattr("daemon.serving.promotion.judge", bug)
        with running(parts, script, digest):
            wait_for(lambda: restarts(parts) >= 1, "a restart")
            assert (parts.serving, parts.versions.manifest.active) == (1, 1)
            patch.undo()
            wait_for(lambda: parts.serving == 2, "promotion once nothing fails")


def test_a_job_of_a_learner_that_died_has_failed(parts):
    script = 'ready(); say("job_started", trigger="samples", after_seq=0); os._exit(9)'
    with running(parts, script):
        wait_for(
            lambda: job_states(parts)[-1:] == [("failed", "the learner process ended")],
            "the failed job",
        )


def test_a_reported_failure_has_its_own_reason(parts):
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
say("job_failed", error="step 3: losses (nan,)")
until_closed()
"""
    with running(parts, script):
        wait_for(lambda: job_states(parts) == [("failed", "step 3: losses (nan,)")], "the failure")


@pytest.mark.parametrize(
    "script",
    ["ready(); until_closed()", "ready(); time.sleep(600)", "time.sleep(600)", "until_closed()"],
    ids=["listens", "ignores its closed input", "never reports", "is silent"],
)
def test_stop_returns_in_time(parts, script):
    with running(parts, script) as supervisor:
        pid = wait_for(lambda: supervisor.pid, "the learner")
        wait_for(lambda: starts(parts) or None, "it to run")
        began = time.monotonic()
        supervisor.stop()
        assert time.monotonic() - began < 5
        assert not alive(pid)
        supervisor.stop()  # twice is harmless


def test_stop_while_it_waits_to_restart_or_has_just_started(parts, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 600)
    with running(parts, "", prelude="import os; os._exit(1)") as supervisor:
        wait_for(lambda: restarts(parts) == 1, "the wait")
        began = time.monotonic()
        supervisor.stop()
        assert time.monotonic() - began < 5
    for _ in range(5):
        with running(parts, "until_closed()") as supervisor:
            pass
        assert supervisor.pid is None


def test_a_learner_that_has_ended_is_not_paused(parts):
    script = """
ready()
if len(open(sys.argv[1]).readlines()) < 2:
    say("progress", samples=0, steps=0, seconds=0.0, last_seq=0, backlog=7,
        progressive_accuracy=None, recent_accuracy=None, losses=[], paused="too hot")
else:
    until_closed()
"""
    with running(parts, script, str(parts.folder / "starts")) as supervisor:
        wait_for(lambda: restarts(parts) == 1, "the restart")
        wait_for(lambda: supervisor.up, "the second learner")
        assert supervisor.paused is None
        assert parts.reading("ffedge_learner_paused") == 0


def test_what_a_learner_that_has_ended_had_to_learn_is_not_known(parts, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 600)
    with running(parts, "ready(); progress(); hear(); sys.exit(1)") as supervisor:
        wait_for(lambda: parts.reading("ffedge_learner_backlog_samples") == 7, "its report")
        supervisor.pace(Pace(1.0, None))
        wait_for(lambda: restarts(parts) == 1, "its end")
        assert parts.reading("ffedge_learner_backlog_samples") is None


def test_a_learner_is_not_started_while_the_store_is_unavailable(parts, monkeypatch):
    why = [Unavailable("read_only", "injected")]
    monkeypatch.setattr(type(parts.store), "unavailable", property(lambda _: (why or [None])[0]))
    parts.store.record(JOBS, 4, {"job": "t-4", "error": "long ago"}).result(WAIT_SECONDS)
    with running(parts, "ready(); until_closed()") as supervisor:
        wait_for(lambda: supervisor.paused, "the reason")
        assert "the file system is read-only" in supervisor.paused
        with pytest.raises(NotReadyError, match="the file system is read-only"):
            supervisor.request_training("", None)  # not that there are no samples
        assert starts(parts) == []
        assert supervisor.well(0.1)
        why.clear()
        wait_for(lambda: supervisor.up, "the learner")
        assert supervisor.paused is None
        assert [job["job"] for job in parts.jobs.list()] == ["t-4"]
    assert len(starts(parts)) == 1


def test_a_learner_that_cannot_read_is_left_alone_for_a_while(parts, caplog):
    with running(parts, "sys.exit(74)"):
        wait_for(lambda: restarts(parts) == 1, "its end")
        wait_for(lambda: waited(caplog) or None, "the pause")
        assert waited(caplog) == [30.0]
        assert restarts(parts, "storage") == 1
