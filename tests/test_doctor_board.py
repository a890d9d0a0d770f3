"""What the doctor says of a board: of trees that look like one, and of a real manager's socket."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path

import pytest

from daemon.doctor_board import DEVICES, Board, check_board
from engines import Finding
from tests.running import wait_for

MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
RAILS = {1: ("VDD_IN", 5000, 1400), 2: ("VDD_CPU_GPU_CV", 5000, 480), 3: ("VDD_SOC", 5000, 420)}
NVPMODEL = "#!/bin/sh\n[ \"$*\" = -q ] && printf 'NV Power Mode: 25W\\n1\\n'\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """An Orin Nano with JetPack 6.2, as far as its files go; without jtop."""
    root = tmp_path / "root"
    write(root / "proc/device-tree/model", MODEL)
    write(root / "etc/nv_tegra_release", RELEASE)
    for node in ("nvmap", "nvgpu/igpu0/ctrl", "nvgpu/igpu0/as", "nvgpu/igpu0/nvsched"):
        write(root / "dev" / node, "")
    hwmon = root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"
    write(hwmon.parents[1] / "name", "ina3221\n")
    for number, (label, millivolts, milliamperes) in RAILS.items():
        write(hwmon / f"in{number}_label", f"{label}\n")
        write(hwmon / f"in{number}_input", f"{millivolts}\n")
        write(hwmon / f"curr{number}_input", f"{milliamperes}\n")
    write(hwmon / "in7_label", "sum of shunt voltages\n")
    write(root / "proc/meminfo", "MemTotal: 7802768 kB\nMemFree: 1 kB\nMemAvailable: 5242880 kB\n")
    (root / "run").mkdir()
    write(root / "bin/nvpmodel", NVPMODEL).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    return Board(root, str(root / "bin"))


def found(board: Board, name: str) -> Finding:
    (finding,) = [finding for finding in check_board(board) if finding.name == name]
    return finding


def verdict(board: Board, name: str) -> str:
    return found(board, name).verdict


def test_a_board_that_is_well(board: Board) -> None:
    findings = {finding.name: finding for finding in check_board(board)}
    assert findings["board"].found == MODEL.rstrip("\0")
    assert findings["L4T"].found == "36.4.3"
    assert findings["device nodes"].found == "4 open as the service opens them"
    sensors = "ina3221: 7.0 W, VDD_CPU_GPU_CV 2.4 W, VDD_SOC 2.1 W"
    assert findings["power sensors"].found == sensors
    assert findings["power mode"].found == "25W"
    assert findings["memory"].found == "5.0 of 7.4 GiB available"
    assert findings["jtop"].verdict == "WARN"
    well = {"board", "L4T", "device nodes", "power sensors", "power mode", "memory"}
    assert {name for name, finding in findings.items() if finding.verdict == "PASS"} >= well


def test_a_machine_that_is_no_board_fails_in_nothing(tmp_path: Path) -> None:
    findings = check_board(Board(tmp_path, ""))
    assert {finding.verdict for finding in findings} == {"SKIP"}
    assert len(findings) == 8


@pytest.mark.parametrize(
    ("release", "verdict", "says"),
    [
        ("# R36 (release), REVISION: 4.7", "PASS", "36.4.7"),
        ("# R36 (release), REVISION: 5.0", "PASS", "36.5.0"),
        ("# R39 (release), REVISION: 2.0", "PASS", "39.2.0"),
        ("# R36 (release), REVISION: 3.0", "FAIL", "36.3.0 (wanted: 36.4"),
        ("# R38 (release), REVISION: 4.0", "FAIL", "38.4.0 (wanted"),
        ("# R35 (release), REVISION: 4.1", "FAIL", "35.4.1 (wanted"),
        ("something else", "FAIL", "absent or unreadable"),
    ],
)
def test_releases_of_l4t(board: Board, release: str, verdict: str, says: str) -> None:
    write(board.root / "etc/nv_tegra_release", release)
    finding = found(board, "L4T")
    assert finding.verdict == verdict
    assert finding.found.startswith(says) or says in finding.found


def test_a_container_without_the_release_file_is_told_to_mount_it(board: Board) -> None:
    (board.root / "etc/nv_tegra_release").unlink()
    finding = found(board, "L4T")
    assert finding.verdict == "FAIL"
    assert "mount the host's" in finding.found


def test_another_jetson_is_a_warning(board: Board) -> None:
    write(board.root / "proc/device-tree/model", "NVIDIA Jetson AGX Orin\0")
    assert verdict(board, "board") == "WARN"


def test_the_nodes_are_those_that_the_unit_lets_in() -> None:
    unit = (Path(__file__).parents[1] / "deploy" / "ffedge.service").read_text()
    allowed = re.findall(r"(?m)^DeviceAllow=/dev/(\S+) (\w+)$", unit)
    assert allowed == [*DEVICES]


def test_a_node_that_is_missing_or_shut_is_named(board: Board) -> None:
    (board.root / "dev/nvmap").unlink()
    shut = board.root / "dev/nvgpu/igpu0/ctrl"
    shut.unlink()
    shut.mkdir()  # root may open any file, but nobody writes to a folder
    finding = found(board, "device nodes")
    assert finding.verdict == "FAIL"
    assert f"{board.root}/dev/nvmap ENOENT" in finding.found
    assert f"{shut} EISDIR" in finding.found
    shut.rmdir()
    assert f"{shut} ENOENT or " in found(board, "device nodes").found


def test_nodes_for_debugging_are_left_alone_and_those_for_reading_are_read(board: Board) -> None:
    gpu = board.root / "dev/nvgpu/igpu0"
    for shut in ("dbg", "prof", "nvsched"):  # a folder can be opened for reading only
        (gpu / shut).unlink(missing_ok=True)
        (gpu / shut).mkdir()
    assert verdict(board, "device nodes") == "PASS"


def test_groups_are_asked_by_the_numbers_that_own_the_nodes(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where the host's groups have no names."""
    nvmap, owner = board.root / "dev/nvmap", 2**31 - 9
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setattr(os, "getegid", lambda: owner)
    finding = found(board, "groups")
    assert finding.verdict == "FAIL"
    assert f" of {nvmap} (" in finding.found
    assert "jtop" not in finding.found  # no socket, no group
    write(board.root / "run/jtop.sock", "")
    assert f" of {board.root}/run/jtop.sock (" in found(board, "groups").found
    mine = nvmap.stat().st_gid
    monkeypatch.setattr(os, "getgroups", lambda: [mine])
    assert verdict(board, "groups") == "PASS"
    monkeypatch.setattr(os, "getgroups", list)
    nvmap.chmod(0o666)  # no group is asked
    assert str(nvmap) not in found(board, "groups").found
    nvmap.chmod(0o660)
    monkeypatch.setattr(os, "getgroups", lambda: [mine])
    if os.getuid() == 0:  # who alone may give a file to a group that it is not in
        os.chown(nvmap, -1, owner)
        write(board.root / "dev/dri/renderD128", "")
        os.chown(board.root / "dev/dri/renderD128", -1, owner + 1)
        finding = found(board, "groups")
        assert f"{board.root}/dev/nvmap" not in finding.found
        assert f"not in {owner + 1} of {board.root}/dev/dri/renderD128 (" in finding.found
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert verdict(board, "groups") == "SKIP"


def test_sensors_are_those_that_the_power_reader_takes(board: Board) -> None:
    monitor = board.root / "sys/bus/i2c/devices/1-0040/name"
    write(monitor, "ltc2945\n")
    finding = found(board, "power sensors")
    assert (finding.verdict, "no INA3221 with a labelled rail" in finding.found) == ("WARN", True)
    powercap = board.root / "sys/class/powercap"

    def counter(zone: str) -> None:
        write(powercap / zone / "name", "package-0\n")
        write(powercap / zone / "energy_uj", "1\n")
        write(powercap / zone / "max_energy_range_uj", "100\n")

    counter("intel-rapl-mmio:0")
    assert verdict(board, "power sensors") == "WARN"
    counter("intel-rapl:0")
    finding = found(board, "power sensors")
    assert (finding.verdict, finding.found) == ("PASS", "rapl: 0.0 W, package-0 0.0 W")
    write(monitor, "ina3221\n")
    assert found(board, "power sensors").found.startswith("ina3221: 7.0 W")


def test_a_board_without_sensors_modes_or_memory(board: Board) -> None:
    shutil.rmtree(board.root / "sys")
    assert verdict(board, "power sensors") == "WARN"
    write(board.root / "bin/nvpmodel", "#!/bin/sh\nexit 3\n")
    assert verdict(board, "power mode") == "WARN"
    (board.root / "bin/nvpmodel").unlink()
    assert verdict(board, "power mode") == "WARN"
    write(board.root / "proc/meminfo", "MemTotal: 7802768 kB\nMemAvailable: 524288 kB\n")
    assert "0.5 of 7.4 GiB available (wanted: 1 GiB" in found(board, "memory").found
    (board.root / "proc/meminfo").unlink()
    assert verdict(board, "memory") == "SKIP"


# A multiprocessing manager on a socket of the file system, which is what jtop's service is.
SERVICE = """
import sys
from multiprocessing.managers import BaseManager
class Manager(BaseManager): pass
Manager.register("answer", callable=lambda: [42])
Manager(address=sys.argv[1], authkey=b"aaabbbccc").get_server().serve_forever()
"""


@contextmanager
def service(path: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", SERVICE, str(path)])
    try:
        wait_for(path.is_socket, "the service")
        yield
    finally:
        process.kill()
        process.wait(10)


def test_jtops_service_is_greeted_and_goes_on_serving(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = board.root / "run/jtop.sock"
    with service(path):
        wait_for(lambda: "does not answer" not in found(board, "jtop").found, "an answer")
        assert verdict(board, "jtop") == "WARN"
        assert "jetson-stats is not installed here" in found(board, "jtop").found
        monkeypatch.setattr("daemon.doctor_board.installed_version", lambda package: "4.3.2")
        assert verdict(board, "jtop") == "PASS"
        assert "jetson-stats 4.3.2 here" in found(board, "jtop").found

        class Client(BaseManager):
            pass

        Client.register("answer")
        client = Client(address=str(path), authkey=b"aaabbbccc")
        client.connect()
        assert client.answer()._getvalue() == [42]  # type: ignore[attr-defined]
    finding = found(board, "jtop")  # the socket's file is still there, nobody listens
    assert finding.verdict == "FAIL"
    assert "Connection refused" in finding.found
    assert "jtop" not in sys.modules


def test_what_is_not_jtops_socket_is_named(board: Board) -> None:
    path = board.root / "run/jtop.sock"
    path.mkdir()
    finding = found(board, "jtop")
    assert finding.verdict == "FAIL"
    assert "is a directory (made by a container before jtop ran: rmdir it" in finding.found
    path.rmdir()
    path.touch()
    assert "is not a socket" in found(board, "jtop").found
    path.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        accepted: list[socket.socket] = []

        def greet() -> None:
            connection, _ = stranger.accept()
            connection.sendall(b"hello")
            accepted.append(connection)

        thread = threading.Thread(target=greet)
        thread.start()
        assert "is not jtop's service" in found(board, "jtop").found
        thread.join()
        accepted[0].close()
