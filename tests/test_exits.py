"""Why a learner ended: from processes that end in every way, and from the kernel's own files."""

from __future__ import annotations

import functools
import signal
import time

import pytest

from daemon.messages import MISCONFIGURED, OUT_OF_MEMORY, STORAGE
from daemon.supervision import backoff
from daemon.supervision.exits import OutOfMemoryKills, reason_of
from tests.daemon_fixtures import daemon_parts, made, restarts, running
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(1)", "crash"),
        ("sys.exit(0)", "crash"),
        ("raise RuntimeError", "crash"),
        ("os.kill(os.getpid(), 11)", "crash"),
        ("os.abort()", "crash"),
        (f"sys.exit({MISCONFIGURED})", "settings"),
        (f"sys.exit({STORAGE})", "storage"),
        (f"sys.exit({OUT_OF_MEMORY})", "oom"),
        ("os.kill(os.getpid(), 9)", "killed"),
        ("os.kill(os.getpid(), 15)", "killed"),
        ("print('nonsense', flush=True); time.sleep(600)", "crash"),
    ],
)
def test_each_end_has_its_reason(tmp_path, monkeypatch, script, reason):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 600)
    with daemon_parts(tmp_path) as parts, running(parts, f"ready()\n{script}"):
        wait_for(lambda: restarts(parts) == 1, "its end")
        assert restarts(parts, reason) == 1


def test_a_command_that_is_not_there_has_crashed(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 600)
    with daemon_parts(tmp_path) as parts:
        supervisor = made(parts, [str(tmp_path / "absent")])
        supervisor.start()
        try:
            wait_for(lambda: restarts(parts, "crash") == 1, "the failed start")
        finally:
            supervisor.stop()


def test_sigkill_is_ours_the_kernels_or_anybodys():
    code = -signal.SIGKILL
    assert reason_of(code, "hang", memory_ran_out=True) == "hang"
    assert reason_of(code, None, memory_ran_out=True) == "oom"
    assert reason_of(code, None, memory_ran_out=False) == "killed"
    # It was on its way out when we killed it: its own word counts.
    assert reason_of(STORAGE, "hang", memory_ran_out=True) == "storage"


V1 = "9:name=systemd:/\n4:cpu,memory:/daemon/one\n0::/\n"
EVENTS = "low 0\nhigh 2\nmax 7\noom 1\noom_kill 3\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("groups", "file", "content", "wanted"),
    [
        (
            "0::/system.slice/ffedge.service\n",
            "system.slice/ffedge.service/memory.events",
            EVENTS,
            3,
        ),
        ("0::/../outside\n", "memory.events", EVENTS, 3),
        (V1, "memory/daemon/one/memory.oom_control", "oom_kill_disable 0\noom_kill 5\n", 5),
        (V1, "memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n", 6),
        (V1, "memory/daemon/one/memory.oom_control", "oom_kill_disable 0\n", None),
        (V1, "elsewhere", "oom_kill 1\n", None),
        (None, "memory.events", EVENTS, None),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 in a container", "old kernel", "nothing", "no /proc"],
)
def test_the_kernels_count_of_kills_for_memory(tmp_path, groups, file, content, wanted):
    root, mine = tmp_path / "fs", tmp_path / "cgroup"
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(content)
    if groups is not None:
        mine.write_text(groups)
    assert OutOfMemoryKills(mine, root).count() == wanted


def test_this_kernel_tells_it_or_not_without_an_error():
    assert OutOfMemoryKills().count() in (None, *range(1_000_000))


def test_a_learner_that_gets_on_is_back_soon_however_often_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)
    with daemon_parts(tmp_path) as parts:
        with running(parts, "ready(); progress(64, 1); os.kill(os.getpid(), 9)"):
            began = time.monotonic()
            wait_for(lambda: restarts(parts, "killed") >= 6, "six kills")
        assert time.monotonic() - began < 0.05 * 2**5
