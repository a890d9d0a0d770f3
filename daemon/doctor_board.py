"""Checks of the board: what it is, whether its GPU's nodes open, where power readings come from.

Everything is read below a root, so that a test can hand over a tree. jetson-stats is AGPL-3.0 and
not imported: its service is met over its socket, its version read from its metadata.
"""

from __future__ import annotations

import errno
import grp
import os
import re
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from daemon.power_provider import Fields, Provider, ProviderError
from daemon.rapl_provider import RaplProvider
from daemon.sysfs_provider import HostFiles, Ina3221Provider
from engines import Finding, Verdict

_GIB = 1 << 30
_TIMEOUT_SECONDS = 3.0
_RAPL_SECONDS = 0.1  # its power is a mean over so long
# A multiprocessing manager, which jtop's service is, greets whoever connects with this.
_GREETING = b"#CHALLENGE#"
# What the service opens of a board that only its groups may.
_GROUP_OWNED = ("dev/nvmap", "dev/dri/renderD128", "run/jtop.sock")
_EVERYBODY = stat.S_IROTH | stat.S_IWOTH
# The GPU's nodes as on JetPack 6, and how they are opened: what the unit's DeviceAllow lets in.
DEVICES = (
    ("nvmap", "rw"),
    ("nvhost-ctrl-gpu", "rw"),
    ("nvhost-gpu", "rw"),
    ("nvhost-as-gpu", "rw"),
    ("nvhost-tsg-gpu", "rw"),
    ("nvhost-prof-gpu", "rw"),
    ("nvhost-dbg-gpu", "rw"),
    ("nvhost-sched-gpu", "rw"),
    ("nvhost-nvsched-gpu", "rw"),
    ("nvhost-power-gpu", "rw"),
    ("nvgpu/igpu0/as", "rw"),
    ("nvgpu/igpu0/channel", "rw"),
    ("nvgpu/igpu0/ctrl", "rw"),
    ("nvgpu/igpu0/power", "rw"),
    ("nvgpu/igpu0/sched", "rw"),
    ("nvgpu/igpu0/nvsched", "r"),
    ("nvgpu/igpu0/tsg", "rw"),
    ("host1x-fence", "rw"),
    ("dri/renderD128", "rw"),
)
# Of each group one; a board may lack any other.
_NEEDED_DEVICES = (("nvmap",), ("nvgpu/igpu0/ctrl", "nvhost-ctrl-gpu"))


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
    told = HostFiles(board.root / "sys", board.root / "proc").fill({})
    return [
        _model(board),
        _release(board),
        _groups(board),
        _nodes(board),
        _jtop(board),
        _sensors(board),
        _power_mode(board, told),
        _memory(told),
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
    if os.geteuid() == 0:
        return Finding("groups", "SKIP", "root needs none: run it as the service's user")
    # By number: a container has the host's, without names.
    mine = {*os.getgroups(), os.getegid()}
    nodes = {path: path.stat() for name in _GROUP_OWNED if (path := board.root / name).exists()}
    missing = [
        f"{_group_name(node.st_gid)} of {path}"
        for path, node in nodes.items()
        if node.st_gid not in mine and node.st_mode & _EVERYBODY != _EVERYBODY
    ]
    if missing:
        remedy = "usermod --append --groups, docker run --group-add, or be the service's user"
        return Finding("groups", "FAIL", f"this user is not in {', '.join(missing)} ({remedy})")
    found = f"may open {', '.join(map(str, nodes)) or 'what there is: no node'}"
    return Finding("groups", "PASS", found)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _nodes(board: Board) -> Finding:
    if not board.is_jetson:
        return Finding("device nodes", "SKIP", "not a Jetson")
    dev = board.root / "dev"
    there = [(dev / name, access) for name, access in DEVICES if (dev / name).exists()]
    refused = [
        " or ".join(f"{dev / name} ENOENT" for name in names)
        for names in _NEEDED_DEVICES
        if not any((dev / name).exists() for name in names)
    ]
    for node, access in there:
        try:
            flags = os.O_RDWR if access == "rw" else os.O_RDONLY
            os.close(os.open(node, flags | os.O_CLOEXEC))
        except OSError as error:
            refused.append(f"{node} {errno.errorcode.get(error.errno or 0, 'error')}")
    if refused:
        remedy = "EACCES: the groups; EPERM: the unit's DeviceAllow; ENOENT: no GPU driver"
        return Finding("device nodes", "FAIL", f"cannot open {', '.join(refused)} ({remedy})")
    return Finding("device nodes", "PASS", f"{len(there)} open as the service opens them")


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
    here = installed_version("jetson-stats")
    if here is None:
        return Finding(name, "WARN", "the service answers, but jetson-stats is not installed here")
    return Finding(
        name, "PASS", f"the service answers; jetson-stats {here} here (wanted: its major.minor)"
    )


def installed_version(package: str) -> str | None:
    """Version of a distribution in this Python; None: it has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sensors(board: Board) -> Finding:
    """Those that the power reader falls back on, opened as it opens them."""
    name, refusals = "power sensors", []
    providers: tuple[Callable[[float, Path], Provider], ...] = (Ina3221Provider, RaplProvider)
    for open_provider in providers:
        try:
            provider = open_provider(_RAPL_SECONDS, board.root / "sys")
            reading = provider.read()
        except (ProviderError, OSError) as error:
            refusals.append(str(error))
            continue
        rails = "".join(f", {rail} {watts:.1f} W" for rail, watts in reading["rails"].items())
        return Finding(name, "PASS", f"{provider.name}: {reading['watts']:.1f} W{rails}")
    without = "without jtop power metrics are absent (docs/power.md)"
    return Finding(name, board.wanted, f"{'; '.join(refusals)}: {without}")


def _power_mode(board: Board, told: Fields) -> Finding:
    mode = told.get("nvpmodel")
    if mode is None:
        found = "no nvpmodel that names one here; in a container ask the host"
        return Finding("power mode", board.wanted, found)
    return Finding("power mode", "PASS", mode)


def _memory(told: Fields) -> Finding:
    if "ram_total_bytes" not in told:
        return Finding("memory", "SKIP", "/proc/meminfo does not tell")
    total = told["ram_total_bytes"]
    free = total - told["ram_used_bytes"]
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if free < _GIB:
        return Finding(
            "memory", "WARN", f"{found} (wanted: 1 GiB; on the board CPU and GPU share it)"
        )
    return Finding("memory", "PASS", found)
