"""Checks of the board: what it is, whether its GPU's nodes open, where power readings come from.

Everything is read below a root, so that a test can hand over a tree. jetson-stats is AGPL-3.0 and
not imported: its service is met over its socket, its version read from its metadata.
"""

from __future__ import annotations

import errno
import grp
import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engines import Finding, Verdict

_GIB = 1 << 30
_TIMEOUT_SECONDS = 3.0
# A multiprocessing manager, which jtop's service is, greets whoever connects with this.
_GREETING = b"#CHALLENGE#"
GROUPS = ("video", "render", "jtop")


@dataclass(frozen=True)
class Board:
    """A machine that may be a Jetson.

    Args:
        root: Where its file system begins.
        path: Where its programs are; None: as the environment says.
    """

    root: Path = Path("/")
    path: str | None = None

    @property
    def model(self) -> str | None:
        """What the device tree calls it; None where there is none."""
        try:
            return (self.root / "proc/device-tree/model").read_text().strip("\0\n ")
        except OSError:
            return None

    @property
    def is_jetson(self) -> bool:
        """Whether L4T runs on it, or the device tree says so."""
        named = "Jetson" in (self.model or "")
        return named or (self.root / "etc/nv_tegra_release").exists()

    @property
    def wanted(self) -> Verdict:
        """What the lack of a board's part means."""
        return "WARN" if self.is_jetson else "SKIP"

    @property
    def l4t(self) -> tuple[int, ...] | None:
        """Version of L4T, such as (36, 4, 3); None where it does not say."""
        try:
            text = (self.root / "etc/nv_tegra_release").read_text()
        except OSError:
            return None
        found = re.match(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text)
        return tuple(map(int, found.groups())) if found else None


def check_board(board: Board) -> list[Finding]:
    """All of them; most are skipped where it is no Jetson."""
    return [
        _model(board),
        _release(board),
        _groups(board),
        _nodes(board),
        _jtop(board),
        _sensors(board),
        _power_mode(board),
        _memory(board),
    ]


def _model(board: Board) -> Finding:
    if not board.is_jetson:
        return Finding("board", "SKIP", f"{board.model or 'no device tree'}: not a Jetson")
    if "Orin Nano" not in (board.model or ""):
        return Finding("board", "WARN", f"{board.model} (made for and described on: Orin Nano)")
    return Finding("board", "PASS", str(board.model))


def _release(board: Board) -> Finding:
    if not board.is_jetson:
        return Finding("L4T", "SKIP", "not a Jetson")
    if board.l4t is None:
        wanted = "wanted: # R36 (release), REVISION: 4.0; in a container mount the host's"
        return Finding("L4T", "FAIL", f"/etc/nv_tegra_release is absent or unreadable ({wanted})")
    found = ".".join(map(str, board.l4t))
    if (36, 4) <= board.l4t < (37,) or board.l4t >= (39, 2):
        return Finding("L4T", "PASS", found)
    return Finding("L4T", "FAIL", f"{found} (wanted: 36.4 of JetPack 6 or later, or 39.2 of 7.2)")


def _groups(board: Board) -> Finding:
    if not board.is_jetson:
        return Finding("groups", "SKIP", "not a Jetson")
    mine = {_group_name(number) for number in [*os.getgroups(), os.getegid()]}
    missing = [name for name in GROUPS if name not in mine]
    if os.geteuid() == 0:
        return Finding("groups", "SKIP", "root needs none: run it as the service's user")
    if missing:
        remedy = "usermod --append --groups, or run it as the service's user"
        return Finding("groups", "FAIL", f"this user is not in {', '.join(missing)} ({remedy})")
    return Finding("groups", "PASS", f"in {', '.join(GROUPS)}")


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:  # a container has numbers from outside
        return str(number)


def _nodes(board: Board) -> Finding:
    if not board.is_jetson:
        return Finding("device nodes", "SKIP", "not a Jetson")
    gpu = board.root / "dev/nvgpu/igpu0"
    nodes = [board.root / "dev/nvmap", *sorted(gpu.glob("*"))]
    refused = []
    for node in nodes:
        # nvsched is for reading only, also in the unit.
        flags = os.O_RDONLY if node.name == "nvsched" else os.O_RDWR
        try:
            os.close(os.open(node, flags | os.O_CLOEXEC))
        except OSError as error:
            refused.append(f"{node} {errno.errorcode.get(error.errno or 0, 'error')}")
    if refused:
        remedy = "EACCES: the groups; EPERM: the unit's DeviceAllow; ENOENT: no GPU driver"
        return Finding("device nodes", "FAIL", f"cannot open {', '.join(refused)} ({remedy})")
    return Finding("device nodes", "PASS", f"{len(nodes)} open for reading and writing")


def _jtop(board: Board) -> Finding:
    path, name = board.root / "run/jtop.sock", "jtop"
    try:
        kind = path.stat().st_mode
    except OSError:
        remedy = "systemctl start jtop; without it: what the sensors below say"
        return Finding(name, board.wanted, f"no {path} ({remedy})")
    if stat.S_ISDIR(kind):
        remedy = "made by a container before jtop ran: rmdir it, systemctl restart jtop"
        return Finding(name, "FAIL", f"{path} is a directory ({remedy})")
    if not stat.S_ISSOCK(kind):
        return Finding(name, "FAIL", f"{path} is not a socket (remove it, systemctl restart jtop)")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.connect(str(path))
            greeting = connection.recv(64)
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(name, "FAIL", f"{path}: {why} (systemctl restart jtop; group jtop)")
    if _GREETING not in greeting:
        return Finding(name, "FAIL", f"what listens at {path} is not jtop's service")
    here = _version("jetson-stats")
    if here is None:
        return Finding(name, "WARN", "the service answers, but jetson-stats is not installed here")
    return Finding(
        name, "PASS", f"the service answers; jetson-stats {here} here (wanted: its major.minor)"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sensors(board: Board) -> Finding:
    rails = []
    for label in sorted(board.root.glob("sys/bus/i2c/devices/*/hwmon/hwmon*/in[0-9]_label")):
        volts, amperes = (
            label.with_name(label.name.replace("_label", "_input")),
            label.with_name(label.name.replace("in", "curr", 1).replace("_label", "_input")),
        )
        try:
            milliwatts = int(volts.read_text()) * int(amperes.read_text()) / 1000
        except (OSError, ValueError):  # a sum of shunt voltages is no rail
            continue
        rails.append(f"{label.read_text().strip()} {milliwatts / 1000:.1f} W")
    if rails:
        return Finding("power sensors", "PASS", f"INA3221: {', '.join(rails)}")
    counters = sorted(board.root.glob("sys/class/powercap/*/energy_uj"))
    if any(os.access(counter, os.R_OK) for counter in counters):
        return Finding("power sensors", "PASS", "RAPL: readable")
    if counters:
        remedy = f"chmod a+r {counters[0]}; power metrics are absent"
        return Finding("power sensors", "WARN", f"RAPL: only root may read it ({remedy})")
    found = "neither INA3221 nor RAPL: power metrics are absent"
    return Finding("power sensors", board.wanted, found)


def _power_mode(board: Board) -> Finding:
    name, program = "power mode", shutil.which("nvpmodel", path=board.path)
    if program is None:
        return Finding(name, board.wanted, "no nvpmodel here; in a container ask the host")
    try:
        done = subprocess.run(  # noqa: S603 - a program of the board's
            [program, "-q"], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, "WARN", f"nvpmodel -q: {error}")
    found = re.search(r"NV Power Mode: *(\S+)", done.stdout)
    if found is None:
        return Finding(name, "WARN", f"nvpmodel -q names none, exit status {done.returncode}")
    return Finding(name, "PASS", found[1])


def _memory(board: Board) -> Finding:
    try:
        text = (board.root / "proc/meminfo").read_text()
    except OSError as error:
        return Finding("memory", "SKIP", f"/proc/meminfo: {error.strerror}")
    kilobytes = {key: int(value) for key, value in re.findall(r"(\w+): +(\d+) kB", text)}
    total, free = (kilobytes.get(key, 0) * 1024 for key in ("MemTotal", "MemAvailable"))
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if free < _GIB:
        return Finding(
            "memory", "WARN", f"{found} (wanted: 1 GiB; on the board CPU and GPU share it)"
        )
    return Finding("memory", "PASS", found)
