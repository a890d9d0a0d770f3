"""`ffedge doctor`: host, service and engines, and the command as a whole."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import doctor, doctor_host
from daemon.config import load_settings
from daemon.doctor import _probe_learner
from daemon.doctor_board import Board
from daemon.doctor_host import check_host, clock, numpy_pair
from daemon.doctor_service import check_service, read_settings
from daemon.errors import StoreError
from engines import Finding
from tests.running import RunningDaemon, wait_for

CONFIG = '[model]\ninput_shape = [4]\nmax_classes = 2\n[store]\ndirectory = "{folder}"\n'


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def configured(folder: Path, more: str = "") -> Path:
    config = folder / "ffedge.toml"
    config.write_text(CONFIG.format(folder=folder / "var") + more)
    return config


@pytest.mark.parametrize(
    ("tensorrt", "numpy", "verdict"),
    [
        ("10.3.0.30", "1.26.4", "PASS"),
        ("10.3.0.30", "2.2.6", "FAIL"),
        ("10.16.1.11", "2.2.6", "PASS"),
        ("11.4.1", "2.3.0", "PASS"),
        (None, "2.2.6", "SKIP"),
    ],
)
def test_old_tensorrt_wants_old_numpy(tensorrt: str | None, numpy: str, verdict: str) -> None:
    finding = numpy_pair({"tensorrt": tensorrt, "numpy": numpy}.get)
    assert finding.verdict == verdict
    assert ("pip install 'numpy<2'" in finding.found) == (verdict == "FAIL")


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ("3.37.2", True),
        ("3.44.5", True),
        ("3.44.6", False),
        ("3.45.1", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
    ],
)
def test_sqlite_with_the_wal_reset_fault_is_named(version: str, faulty: bool) -> None:
    finding = doctor_host._sqlite_version(version)
    assert finding.verdict == "PASS"  # it takes a second writer, and there is none
    assert ("let no other program write" in finding.found) == faulty


@pytest.mark.parametrize(
    ("now", "state", "verdict"),
    [(0.0, 0, "FAIL"), (1.8e9, 0, "PASS"), (1.8e9, 5, "WARN"), (1.8e9, None, "SKIP")],
)
def test_the_clock(now: float, state: int | None, verdict: str) -> None:
    assert clock(now, state).verdict == verdict


def test_the_kernel_tells_whether_the_clock_is_set() -> None:
    assert doctor_host._clock_state() in {None, 0, 1, 2, 3, 4, 5}


def test_the_state_directory_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "ffedge.sqlite").write_bytes(b"not touched")
    findings = check_host(tmp_path)
    assert named(findings, "durability").verdict == "PASS"
    assert named(findings, "disk").found.startswith("fdatasync of 4 KiB: p50 ")
    assert "GiB free at" in named(findings, "free space").found
    assert [path.name for path in tmp_path.iterdir()] == ["ffedge.sqlite"]
    assert (tmp_path / "ffedge.sqlite").read_bytes() == b"not touched"


def test_a_state_directory_that_is_absent_or_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = named(check_host(tmp_path / "var"), "state directory")
    assert (absent.verdict, "first start makes it" in absent.found) == ("SKIP", True)

    (tmp_path / "file").touch()
    for place in ("file", "file/var"):
        no_folder = named(check_host(tmp_path / place), "state directory")
        assert (no_folder.verdict, "file is no folder" in no_folder.found) == ("FAIL", True)

    for error, remedy in (
        (PermissionError(errno.EACCES, "Permission denied"), "sudo -u ffedge ffedge doctor"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "mount it for writing"),
        (OSError(errno.EIO, "Input/output error"), "samples cannot be kept there"),
    ):

        def refuse(*_: object, error: OSError = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
        shut = named(check_host(tmp_path), "state directory")
        assert (shut.verdict, remedy in shut.found) == ("FAIL", True)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ('device = "cuda"', "built without CUDA"),
        ('fusion = "kernels"', "chains cannot run in kernels"),
    ],
)
def test_a_learner_that_cannot_run_as_configured_is_a_failure(
    tmp_path: Path, setting: str, why: str
) -> None:
    config = tmp_path / "ffedge.toml"
    config.write_text(f"[model]\ninput_shape = [4]\nmax_classes = 2\n[learner]\n{setting}\n")
    findings = [*_probe_learner(load_settings(config))]
    assert [(finding.name, finding.verdict) for finding in findings] == [("learner", "FAIL")]
    assert findings[0].found.startswith("learner.device or learner.fusion: ")
    assert why in findings[0].found


def test_a_file_system_that_does_not_keep_the_promise_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise StoreError(f"{path}: PRAGMA journal_mode is 'delete' and not 'wal'")

    monkeypatch.setattr(doctor_host, "open_writer", refuse)
    finding = named(check_host(tmp_path), "durability")
    assert finding.verdict == "FAIL"
    assert "journal_mode" in finding.found


def test_slow_syncs_and_a_full_disk_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_host, "_SLOW_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(doctor_host, "_GIB", 1 << 60)
    findings = check_host(tmp_path)
    assert named(findings, "disk").verdict == "WARN"
    assert named(findings, "free space").verdict == "WARN"


def test_a_wrong_configuration_is_one_failure_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    settings, finding = read_settings(configured(tmp_path, "[gate]\nmargn = 1\n"))
    assert settings is None
    assert finding.verdict == "FAIL"
    assert "unknown key 'gate.margn'" in finding.found
    assert {f.verdict for f in check_service(settings, {}, Board(tmp_path, ""))} == {"SKIP"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path_factory.mktemp("daemon")) as daemon:
        wait_for(daemon.learner_up, "the learner")
        yield daemon


@pytest.mark.timeout(300)  # it asks a compiler
def test_the_command_beside_a_running_daemon(daemon: RunningDaemon) -> None:
    port = daemon.client.base_url.port
    config = daemon.config.with_name("doctor.toml")
    config.write_text(daemon.config.read_text().replace("port = 0", f"port = {port}"))
    before = {path.name for path in daemon.store.iterdir()}
    command = [sys.executable, "-m", "daemon", "doctor", "--json", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert daemon.client.get("/health/ready").json()["ready"]
    assert {path.name for path in daemon.store.iterdir()} == before
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1])
    failed = [line for line in lines if line.startswith("FAIL")]
    assert done.returncode == (1 if failed else 0)
    assert summary["ok"] == (not failed)
    assert len(summary["findings"]) == len(lines) - 1 == sum(summary["counts"].values())
    for line, finding in zip(lines, summary["findings"], strict=False):
        assert line == f"{finding['verdict']} {finding['name']}: {finding['found']}"
    texts = {finding["name"]: finding for finding in summary["findings"]}
    assert "a daemon answers" in texts["port"]["found"]
    for name in ("configuration", "INT8 product", "engine torch", "durability"):
        assert texts[name]["verdict"] == "PASS", texts[name]


def test_the_port_is_free_or_a_daemon_answers_or_something_else_does(
    tmp_path: Path, daemon: RunningDaemon
) -> None:
    """The last to use this daemon."""
    nowhere = Board(tmp_path, "")
    port = daemon.client.base_url.port
    settings, _ = read_settings(configured(tmp_path, f"[server]\nport = {port}\n"))
    finding = named(check_service(settings, {}, nowhere), "port")
    assert finding.verdict == "PASS"
    assert "ready, its learner is up" in finding.found
    daemon.kill_group()
    finding = named(check_service(settings, {}, nowhere), "port")
    assert (finding.verdict, "is free" in finding.found) == ("PASS", True)
    stranger = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    process = subprocess.Popen(stranger, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout
        assert b"Serving" in process.stdout.readline()
        finding = named(check_service(settings, {}, nowhere), "port")
        assert finding.verdict == "FAIL"
        assert "something that is not ffedge" in finding.found
    finally:
        process.kill()
        process.communicate()


SYSTEMCTL = """#!/bin/sh
[ "$1 $2" = "show ffedge.service" ] || exit 9
echo LoadState={load}
echo ActiveState={active}
echo NRestarts=2
echo WatchdogUSec={watchdog}
echo StatusText=serves
"""


@pytest.mark.parametrize(
    ("load", "active", "watchdog", "verdict"),
    [
        ("loaded", "active", "1min", "PASS"),
        ("loaded", "failed", "1min", "FAIL"),
        ("loaded", "active", "0", "WARN"),
        ("not-found", "inactive", "0", "SKIP"),
    ],
)
def test_what_systemd_says_of_the_service(
    tmp_path: Path, load: str, active: str, watchdog: str, verdict: str
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(load=load, active=active, watchdog=watchdog))
    program.chmod(0o755)
    board = Board(tmp_path, f"{tmp_path}:/bin:/usr/bin")
    assert named(check_service(None, {}, board), "service").verdict == verdict
    managed = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "60000000"}
    assert "watchdog 60 s" in named(check_service(None, managed, board), "service").found
    (tmp_path / ".dockerenv").touch()
    assert "HEALTHCHECK" in named(check_service(None, {}, board), "service").found


def test_a_check_that_breaks_is_a_failure_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> list[Finding]:
        raise RuntimeError("no such bus")

    monkeypatch.setattr(doctor, "check_board", broken)
    monkeypatch.setattr(doctor, "probe_machine", broken)
    config = configured(tmp_path, "[governor]\nmax_celsius = 850.0\n")
    findings = list(doctor.examine(config, Board(tmp_path, "")))
    assert named(findings, "configuration").verdict == "PASS"
    assert named(findings, "settings").verdict == "WARN"
    assert "850.0 C is above 120" in named(findings, "settings").found
    for name in ("board", "torch"):
        finding = named(findings, name)
        assert (finding.verdict, finding.found) == (
            "FAIL",
            "the check broke: RuntimeError: no such bus",
        )
    assert named(findings, "engine torch").verdict == "PASS"
    assert not doctor.summarize(findings)["ok"]


@pytest.mark.parametrize(
    ("server", "jetson", "verdict"),
    [
        ('[server]\nengine = "tensorrt"\n', True, "FAIL"),
        ("", True, "WARN"),
        ("", False, "SKIP"),
        ("[gate]\nmargn = 1\n", True, "WARN"),  # no valid settings
    ],
    ids=["asked for", "board", "no board", "no settings"],
)
def test_an_engine_that_is_refused_weighs_what_the_settings_and_the_machine_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, jetson: bool, verdict: str
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(doctor, "probe_machine", lambda *, board: [])
    if jetson:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "nv_tegra_release").touch()
    findings = list(doctor.examine(configured(tmp_path, server), Board(tmp_path, "")))
    assert named(findings, "engine tensorrt").verdict == verdict


def test_the_command_fails_on_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    said: list[str] = []
    assert doctor.run_doctor(tmp_path / "x.toml", as_json=True, say=said.append) == 1
    assert said[0].startswith("FAIL configuration: no configuration file")
    assert json.loads(said[-1])["ok"] is False
