"""The systemd unit: read by systemd's own tools, and the daemon run under its call filter."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.learning.pace import LEARNER_OOM_SCORE
from tests import system_calls
from tests.running import RunningDaemon, wait_for

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "deploy" / "ffedge.service"
EXPOSURE_TIMES_TEN = 20


def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    done = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=True
    )
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0


needs_systemd = pytest.mark.skipif(
    systemd_version() < 250, reason=f"needs systemd-analyze 250 or later, {systemd_version()} here"
)


def verified(root: Path, unit: str) -> str:
    """What systemd-analyze says about a unit in a root that has its program."""
    program = root / "opt" / "ffedge" / "bin" / "ffedge"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    own, stock = root / "etc" / "systemd" / "system", root / "usr" / "lib" / "systemd" / "system"
    own.mkdir(parents=True)
    (own / UNIT.name).write_text(unit)
    shutil.copytree("/lib/systemd/system", stock, symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    command = ["systemd-analyze", "verify", "--man=no", f"--root={root}", UNIT.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + (f"exit status {done.returncode}" * bool(done.returncode))


@needs_systemd
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """Unknown keys and bad values leave the exit status 0, so any word counts."""
    assert verified(tmp_path, UNIT.read_text()) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("WatchdogSec=60", "WatchdogSec=soon"),
        ("OOMPolicy=continue", "OomPolicy=continue"),
        ("ExecStart=/opt/ffedge/bin/ffedge", "ExecStart=/opt/ffedge/bin/absent"),
    ],
    ids=["value", "key", "program"],
)
def test_the_check_finds_faults(tmp_path: Path, line: str, broken: str) -> None:
    unit = UNIT.read_text()
    assert line in unit
    assert verified(tmp_path, unit.replace(line, broken)) != ""


@needs_systemd
def test_the_exposure_stays_low() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}"]
    done = subprocess.run([*command, str(UNIT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_what_would_shut_out_the_gpu_is_off() -> None:
    lines = UNIT.read_text().splitlines()
    for line in ("ProtectClock=no", "PrivateDevices=no", "PrivateUsers=no", "ProcSubset=all"):
        assert line in lines
    assert "SupplementaryGroups=video render jtop" in lines


def test_a_learner_that_is_killed_for_memory_does_not_end_the_service() -> None:
    lines = UNIT.read_text().splitlines()
    assert "OOMPolicy=continue" in lines
    (score,) = [int(line.partition("=")[2]) for line in lines if line.startswith("OOMScoreAdjust=")]
    assert score < LEARNER_OOM_SCORE
    assert not [line for line in lines if line.startswith("MemoryHigh=")]


def test_the_service_finds_the_nvcc_that_the_installer_compiles_with() -> None:
    (path,) = re.findall(r"(?m)^Environment=PATH=(.*)$", UNIT.read_text())
    installer = (ROOT / "deploy" / "install.sh").read_text()
    assert "cuda=$root/usr/local/cuda\n" in installer
    assert path.split(":")[0] == "/usr/local/cuda/bin"
    assert {"/usr/bin", "/bin", "/usr/sbin"} < {*path.split(":")}  # g++, nvpmodel


needs_filter = pytest.mark.skipif(
    system_calls.missing() is not None, reason=str(system_calls.missing())
)
LAUNCHER = [sys.executable, str(Path(system_calls.__file__)), str(UNIT), sys.executable]


@needs_filter
def test_the_filter_is_one() -> None:
    harmless = "import os; os.sched_setparam(0, os.sched_param(0))"
    subprocess.run([sys.executable, "-c", harmless], check=True)
    filtered = subprocess.run(
        [*LAUNCHER, "-c", harmless], capture_output=True, text=True, check=False
    )
    assert "PermissionError: [Errno 1]" in filtered.stderr


@needs_filter
def test_the_daemon_learns_and_swaps_under_the_units_system_call_filter(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, 8, program=[*LAUNCHER, "-m", "daemon"]) as daemon:
        samples = [{"x": [float(i % 2), *map(float, range(7))], "label": i % 2} for i in range(400)]
        for start in range(0, 400, 200):
            body = {"samples": samples[start : start + 200]}
            assert daemon.client.post("/samples", json=body).status_code == 201
        wait_for(daemon.learner_up, "the learner")
        wait_for(lambda: (daemon.metric("ffedge_learn_steps_total") or 0) > 0, "a step", 60)
        wait_for(daemon.settled, "a verdict", 60)
        assert daemon.restarts() == 0
        learner = Path(f"/proc/{daemon.learner_pid()}/status").read_text()
        assert "Seccomp:\t2" in learner
