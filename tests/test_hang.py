"""A learner that says nothing for too long is killed by a thread of its own, and only then."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading

import pytest

from daemon.supervision import backoff, child, heartbeat
from daemon.supervision import supervisor as supervisor_module
from daemon.supervision.heartbeat import HangWatch, Heartbeat
from tests.daemon_fixtures import WAIT_SECONDS, alive, daemon_parts, restarts, running, starts
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)

HANG_SECONDS = 0.6
# In which nothing must happen to a learner that has a reason to be silent.
PATIENCE_SECONDS = 2 * HANG_SECONDS
SILENT = "time.sleep(600)"
WORKING = 'say("job_started", trigger="samples", after_seq=0); say("alive")'
WELL = "while True: say('alive'); time.sleep(0.1)"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.2)
    with daemon_parts(tmp_path) as parts:
        yield parts


@pytest.mark.parametrize(
    "script",
    [
        f"ready(); {SILENT}",
        f"ready(); {WORKING}; {SILENT}",
        "ready(); progress()\nwhile True: pass",
    ],
    ids=["idles", "is at work", "loops for ever"],
)
def test_a_learner_that_falls_silent_is_killed_and_started_again(parts, script):
    with running(parts, script + "\n", hang_seconds=HANG_SECONDS) as supervisor:
        first = wait_for(lambda: supervisor.up and supervisor.pid, "the learner")
        wait_for(lambda: restarts(parts, "hang") >= 1, "its end")
        assert not alive(first)
        wait_for(lambda: len(starts(parts)) >= 2, "the next one")
    assert restarts(parts) == restarts(parts, "hang")


def test_a_stopped_learner_is_named_silent_and_killed_too(parts, monkeypatch):
    monkeypatch.setattr(heartbeat, "_LONG_SECONDS", HANG_SECONDS / 3)
    with running(parts, f"ready()\n{WELL}", hang_seconds=HANG_SECONDS) as supervisor:
        pid = wait_for(lambda: supervisor.up and supervisor.pid, "the learner")
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: supervisor.up and supervisor.why_down, "a word on its silence")
        wait_for(lambda: restarts(parts, "hang") == 1, "its end")
        wait_for(lambda: supervisor.up and supervisor.pid != pid, "the next one")


@pytest.mark.parametrize(
    "script",
    [
        SILENT,
        f'ready(); say("busy", why="chains compile", seconds=600.0); {SILENT}',
        f"ready()\n{WELL}",
    ],
    ids=["starts", "compiles", "is slow, and says that it lives"],
)
def test_a_learner_that_has_a_reason_is_left_alone(parts, script, monkeypatch):
    monkeypatch.setattr(heartbeat, "_LONG_SECONDS", HANG_SECONDS)
    with running(parts, script, hang_seconds=HANG_SECONDS) as supervisor:
        wait_for(lambda: supervisor.up or "ready" not in script, "the learner")
        pid = wait_for(lambda: supervisor.pid, "its process")
        assert stays_alive(pid)
        assert "said nothing" not in str(supervisor.why_down)
        assert supervisor.heard_seconds_ago < WAIT_SECONDS
        assert parts.reading("ffedge_learner_heartbeat_age_seconds") is not None
    assert supervisor.heard_seconds_ago is None
    assert parts.reading("ffedge_learner_heartbeat_age_seconds") is None
    assert restarts(parts) == 0


def test_a_start_has_its_own_time_and_no_more(parts, monkeypatch):
    monkeypatch.setattr(heartbeat, "_START_SECONDS", HANG_SECONDS)
    with running(parts, SILENT, hang_seconds=HANG_SECONDS):
        wait_for(lambda: restarts(parts, "hang") == 1, "its end")


def test_a_start_that_is_slower_than_that_gets_through_at_last(parts, monkeypatch):
    monkeypatch.setattr(heartbeat, "_START_SECONDS", HANG_SECONDS)
    script = f"time.sleep({1.5 * HANG_SECONDS}); ready(); until_closed()"
    with running(parts, script, hang_seconds=HANG_SECONDS) as supervisor:
        wait_for(lambda: supervisor.up, "a learner that is given longer")
    assert restarts(parts) == restarts(parts, "hang") >= 1


def test_a_learner_that_waits_for_its_verdict_may_be_silent_until_it_has_it(parts, monkeypatch):
    asked, judged = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        asked.set()
        judged.wait(WAIT_SECONDS)
        raise RuntimeError("enough")

    monkeypatch.setattr(parts.promotion, "consider", slow)
    script = f"ready(); {WORKING}; propose(2, '0' * 64); {SILENT}\n"
    with running(parts, script, hang_seconds=HANG_SECONDS) as supervisor:
        assert asked.wait(WAIT_SECONDS)
        assert stays_alive(supervisor.pid)
        assert supervisor.well(HANG_SECONDS)
        monkeypatch.setattr(supervisor_module, "_VERDICT_SECONDS", 0.0)
        assert not supervisor.well(HANG_SECONDS)  # the judge is stuck, not the learner
        judged.set()
        wait_for(lambda: restarts(parts, "crash") == 1, "the verdict's failure")


def test_words_that_nobody_has_read_yet_are_no_silence():
    """The thread that hears was held up; the learner talked all the while."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import time; print(1, flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
    ) as talking:
        watch = HangWatch(Heartbeat(), 0.2, lambda: False)
        watch.watch(talking)
        watch.start()
        try:
            assert stays_alive(talking.pid)
            assert watch.seconds_since_look < PATIENCE_SECONDS
            assert talking.stdout.readline() == b"1\n"
            assert talking.wait(WAIT_SECONDS) == -signal.SIGKILL
            assert watch.release()
        finally:
            watch.stop()
            talking.kill()


def test_a_supervisor_whose_thread_has_ended_is_not_well(parts):
    with running(parts, "ready(); until_closed()") as supervisor:
        wait_for(lambda: supervisor.up, "the learner")
        assert supervisor.well(WAIT_SECONDS)
        assert not supervisor.well(-1.0)  # it has not looked within no time
    assert not supervisor.well(WAIT_SECONDS)


def stays_alive(pid: int | None) -> bool:
    assert pid
    try:
        wait_for_long(lambda: not alive(pid), "its end", PATIENCE_SECONDS)
    except AssertionError:
        return True
    return False
