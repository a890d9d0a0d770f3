"""Checks of the service: its settings, its port or the daemon behind it, its unit."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from daemon.config import ServerSettings, Settings, load_settings
from daemon.doctor_board import Board
from daemon.errors import ConfigError
from engines import Finding

_TIMEOUT_SECONDS = 3.0
_UNIT = "ffedge.service"


def read_settings(config: Path) -> tuple[Settings | None, Finding]:
    """The settings, where they are valid, and how they stand."""
    try:
        settings = load_settings(config)
    except ConfigError as error:
        return None, Finding("configuration", "FAIL", str(error))
    model = settings.model
    found = (
        f"{config}: {model.name}, input_shape {[*model.input_shape]}, {model.max_classes} classes"
    )
    return settings, Finding("configuration", "PASS", found)


def check_service(
    settings: Settings | None, environment: Mapping[str, str], board: Board
) -> list[Finding]:
    """The rest of them.

    Args:
        settings: None: the configuration is not valid.
        environment: `os.environ`.
        board: The machine.
    """
    if settings is None:
        port = Finding("port", "SKIP", "the configuration does not name it")
    else:
        port = _port(settings.server)
    return [port, _unit(environment, board)]


def _port(server: ServerSettings) -> Finding:
    if server.port == 0:
        return Finding("port", "SKIP", "server.port = 0: any free one")
    # A daemon that listens everywhere listens on loopback.
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::") else server.host  # noqa: S104 - compared
    at = f"{host} port {server.port}"
    try:
        socket.create_connection((host, server.port), _TIMEOUT_SECONDS).close()
    except ConnectionRefusedError:
        return Finding("port", "PASS", f"{at} is free: no daemon runs")
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(
            "port", "FAIL", f"{at}: {why} (set server.host to an address of this machine)"
        )
    connection = http.client.HTTPConnection(host, server.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        status = json.loads(connection.getresponse().read())
        ready, learner = bool(status["ready"]), bool(status["learner"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        remedy = "stop it, or set server.port"
        return Finding("port", "FAIL", f"something that is not ffedge listens at {at} ({remedy})")
    finally:
        connection.close()
    found = f"a daemon answers at {at}"
    if not ready:
        return Finding("port", "WARN", f"{found}, not ready: ingest is behind")
    if not learner:
        return Finding("port", "WARN", f"{found}, its learner is down or starting (see its log)")
    return Finding("port", "PASS", f"{found}, ready, its learner is up")


def _unit(environment: Mapping[str, str], board: Board) -> Finding:
    name = "service"
    if "NOTIFY_SOCKET" in environment:
        seconds = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        watched = f"watchdog {seconds:g} s" if seconds else "no watchdog"
        return Finding(name, "PASS", f"run by a service manager, {watched}")
    if (board.root / ".dockerenv").exists():
        return Finding(name, "SKIP", "in a container: its HEALTHCHECK watches")
    program = shutil.which("systemctl", path=board.path)
    if program is None:
        return Finding(name, "SKIP", "no systemctl here")
    fields = ("LoadState", "ActiveState", "NRestarts", "WatchdogUSec", "StatusText")
    command = [program, "show", _UNIT, *(f"--property={field}" for field in fields)]
    try:
        done = subprocess.run(  # noqa: S603 - systemd's own
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, "SKIP", f"systemctl: {error}")
    told = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if done.returncode or "LoadState" not in told:
        return Finding(name, "SKIP", "systemd does not run here")
    if told["LoadState"] != "loaded":
        return Finding(name, "SKIP", f"{_UNIT} is not installed (deploy/install.sh)")
    found = (
        f"{told['ActiveState']}, {told['NRestarts']} restarts, watchdog {told['WatchdogUSec']}, "
        f"{told['StatusText'] or 'no status'}"
    )
    if told["ActiveState"] == "failed":
        return Finding(name, "FAIL", f"{found} (journalctl --unit {_UNIT})")
    if told["WatchdogUSec"] == "0":
        return Finding(name, "WARN", f"{found} (wanted: WatchdogSec=60, a hang goes unnoticed)")
    return Finding(name, "PASS", found)
