"""Installs jetson-stats in an environment of its own and runs its service as a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jtop_rig import fake_sysfs
from tests.running import wait_for

HERE = Path(__file__).parent
_INSTALL_SECONDS = 300


def jetson_stats_python(cache: pytest.Cache, version: str) -> Path:
    """An interpreter that has this jetson-stats and nothing of ours; made once, then kept.

    jetson-stats is AGPL-3.0: tests run it, in processes of its own, and ship nothing of it.
    """
    folder = cache.mkdir(f"jetson-stats-{version}-py{sys.version_info[0]}.{sys.version_info[1]}")
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        # As root, the sdist of 4.3 would install and start a service, unless in a container.
        environment = os.environ | {"container": "1"}
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", f"jetson-stats=={version}"],
        ):
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                check=False,
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                pytest.skip(f"pip cannot get jetson-stats {version} here: {last}")
        complete.touch()
    return python


class JtopService:
    """The service of one version on a tree of its own."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        self.tree = fake_sysfs.build(folder / "sys")
        self.socket = folder / "jtop.sock"
        self.nvpmodel = folder / "nvp"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, python: Path | None = None) -> None:
        ready, log = self.folder / "ready", self.folder / "service.log"
        ready.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        path = f"{HERE}:/usr/sbin:{os.environ['PATH']}"
        command = [python or self.python, HERE / "server.py", self.tree, self.socket, ready]
        with log.open("ab") as output:
            self._process = process = subprocess.Popen(
                command,
                env=os.environ | {"PATH": path, "FAKE_NVP_STATE": str(self.nvpmodel)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        def started() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            return ready.exists()

        wait_for(started, "the jtop service")

    def signal(self, number: signal.Signals) -> None:
        """To the service and the manager that it has forked."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def set_power_mode(self, number: int) -> None:
        self.nvpmodel.write_text(str(number))
