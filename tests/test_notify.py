"""What a service manager hears: over a real datagram socket, from a real daemon."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest

from daemon import notify
from daemon.notify import Notifier
from tests.running import RunningDaemon, wait_for

# Long enough for a learner that reports every second on a busy machine, short enough to wait for.
WATCHDOG_SECONDS = 3
SILENCE_SECONDS = 4.0


class Manager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[str] = []

    def next(self, wanted: str, seconds: float = 30.0) -> str | None:
        """The next line that begins so; None when it does not come. Others are kept in `heard`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                lines = self._socket.recv(4096).decode().split("\n")
            except TimeoutError:
                break
            self.heard.extend(lines)
            for line in lines:
                if line.startswith(wanted):
                    return line
        return None

    def falls_silent(self, wanted: str, silence: float, seconds: float = 40.0) -> bool:
        """Whether at last no such line comes for `silence` seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.next(wanted, silence) is None:
                return True
        return False

    def forget(self) -> None:
        """Take what has come so far, so that `next` gives what comes from now on."""
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.heard.extend(self._socket.recv(4096).decode().split("\n"))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


@pytest.mark.parametrize(
    "name", ["{folder}/notify", "@ffedge-test-{pid}"], ids=["file", "abstract"]
)
def test_every_message_arrives_as_sd_notify_has_it(tmp_path: Path, name: str) -> None:
    address = name.format(folder=tmp_path, pid=os.getpid())
    with closing(Manager(address)) as manager, closing(Notifier(address)) as notifier:
        notifier.ready()
        notifier.status("serves version 1")
        notifier.status("serves version 1")  # nothing new
        notifier.alive()
        notifier.stopping()
        assert manager.next("STATUS=stopping")
        assert manager.heard == [
            "READY=1",
            "STATUS=serves version 1",
            "WATCHDOG=1",
            "STOPPING=1",
            "STATUS=stopping",
        ]


def test_the_environment_names_the_socket_and_loses_it() -> None:
    environment = {
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": "7",
        "HOME": "/",
    }
    with closing(Notifier.take(environment, 7)) as notifier:
        assert notifier.watchdog_seconds == 30.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "@x"},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "8"},
    ],
    ids=["nothing", "no watchdog", "no socket", "off", "no number", "another process's"],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(environment: dict[str, str]) -> None:
    with closing(Notifier.take(environment, 7)) as notifier:
        assert notifier.watchdog_seconds is None


def test_a_manager_that_is_gone_or_deaf_holds_nothing_up(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Notifier(manager.address)) as notifier:
        began = time.monotonic()
        for _ in range(1000):  # more than its socket holds
            notifier.alive()
        assert time.monotonic() - began < 10
        Path(manager.address).unlink()
        notifier.alive()
    assert {record.message for record in caplog.records} == {"service manager not told"}
    nobody = Notifier(None)
    nobody.ready()
    with nobody.starting("x"):
        pass
    nobody.close()


def test_a_long_start_asks_for_more_time_until_it_ends_or_takes_too_long(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_EXTEND_EVERY_SECONDS", 0.05)
    extension = "EXTEND_TIMEOUT_USEC=60000000"
    with closing(Notifier(manager.address)) as notifier:
        with notifier.starting("building an engine"):
            assert manager.next(extension)
            assert manager.next(extension)
        assert manager.heard[0] == "STATUS=building an engine"
        assert manager.falls_silent(extension, 0.5)
        with notifier.starting("hanging", limit_seconds=0.1):
            assert manager.falls_silent(extension, 0.5)


def started(manager: Manager, folder: Path, **options: object) -> RunningDaemon:
    watchdog = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 10**6)}
    return RunningDaemon(folder, environment=watchdog, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manager, RunningDaemon]]:
    """A daemon under a manager, for the tests that follow in their order."""
    folder = tmp_path_factory.mktemp("managed")
    more = f"hang_seconds = {WATCHDOG_SECONDS}\n"
    with (
        closing(Manager(str(folder / "notify"))) as manager,
        started(manager, folder, more=more) as daemon,
    ):
        assert manager.next("READY=1")
        yield manager, daemon


def test_a_daemon_is_ready_once_it_answers_then_alive(
    managed: tuple[Manager, RunningDaemon],
) -> None:
    manager, daemon = managed
    before = manager.heard[: manager.heard.index("READY=1")]
    assert before[0].startswith("STATUS=opening the store")
    assert "WATCHDOG=1" not in before
    assert daemon.client.post("/predict", json={"x": [0.0] * 64}).json()["model_version"] == "1"
    for _ in range(3):
        assert manager.next("WATCHDOG=1", 2 * WATCHDOG_SECONDS)
    wait_for(daemon.learner_up, "the learner")
    told = [line for line in manager.heard if line.startswith("STATUS=serves version 1 of mlp")]
    assert told
    assert str(daemon.client.base_url).rstrip("/") in told[0]


def test_two_daemons_do_not_share_a_directory_and_the_second_is_never_ready(
    managed: tuple[Manager, RunningDaemon],
) -> None:
    manager, daemon = managed
    command = [sys.executable, "-m", "daemon", "serve", "--config", str(daemon.config)]
    environment = os.environ | {"NOTIFY_SOCKET": manager.address}
    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 2
    assert "another daemon works in" in second.stderr.splitlines()[-1]
    assert manager.next("READY=1", 0.5) is None
    assert daemon.client.get("/health/live").status_code == 200


def test_a_learner_that_was_killed_is_no_reason_to_restart_the_server(
    managed: tuple[Manager, RunningDaemon],
) -> None:
    manager, daemon = managed
    wait_for(daemon.learner_up, "the learner")
    learner = daemon.learner_pid()
    assert learner
    manager.forget()
    os.kill(learner, signal.SIGKILL)
    wait_for(lambda: daemon.restarts() == 1, "the restart")
    for _ in range(3):
        assert manager.next("WATCHDOG=1", 2 * WATCHDOG_SECONDS)
    wait_for(daemon.learner_up, "the next learner")


def test_a_learner_that_hangs_is_replaced_and_the_watchdog_fed_all_the_while(
    managed: tuple[Manager, RunningDaemon],
) -> None:
    manager, daemon = managed
    wait_for(daemon.learner_up, "the learner")
    learner = daemon.learner_pid()
    assert learner
    manager.forget()
    os.kill(learner, signal.SIGSTOP)
    began = time.monotonic()
    while daemon.learner_pid() == learner:
        assert manager.next("WATCHDOG=1", WATCHDOG_SECONDS)
        assert time.monotonic() - began < 10 * WATCHDOG_SECONDS
    wait_for(daemon.learner_up, "the next learner")
    assert daemon.metric('ffedge_learner_restarts_total{reason="hang"}') == 1
    assert (daemon.metric("ffedge_learner_heartbeat_age_seconds") or 0) < WATCHDOG_SECONDS


def test_a_daemon_that_is_told_to_stop_says_so_and_was_ready_once(
    managed: tuple[Manager, RunningDaemon],
) -> None:
    """The last to use this daemon."""
    manager, daemon = managed
    daemon.process.send_signal(signal.SIGTERM)
    assert manager.next("STOPPING=1")
    assert daemon.process.wait(30) == 0
    assert manager.heard.count("READY=1") == 1


# A part does nothing any more once a signal has come. The event loop's own runs the handler: Python
# runs it in the main thread.
BLOCKABLE = """
import signal, threading, time
blocked = threading.Event()
def block(*_):
    blocked.set()
    {main}
signal.signal(signal.SIGUSR1, block)
def hold(owner, name):
    real = getattr(owner, name)
    def held(*arguments, **named):
        if blocked.is_set():
            time.sleep(600)
        return real(*arguments, **named)
    setattr(owner, name, held)
{part}
from daemon.__main__ import main
main()
"""
PARTS = {
    "event loop": ("time.sleep(600)", ""),
    "writer": ("", "from daemon.store.writer import Writer; hold(Writer, '_commit')"),
    "predictor": ("", "from daemon.serving.slot import Served; hold(Served, 'answer')"),
    "supervisor": ("", "from daemon.supervision import heartbeat; hold(heartbeat, '_unheard')"),
}


def falls_silent_while_stuck(folder: Path, part: str) -> None:
    main, held = PARTS[part]
    program = [sys.executable, "-c", BLOCKABLE.format(main=main, part=held)]
    more = "hang_seconds = 2\n" if part == "supervisor" else ""
    folder.mkdir()
    with (
        closing(Manager(str(folder / "notify"))) as manager,
        started(manager, folder, program=program, more=more) as daemon,
    ):
        wait_for(daemon.learner_up, "the learner")
        assert manager.next("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGUSR1)
        if part == "supervisor":  # whose thread looks closer at a learner that is silent only
            learner = daemon.learner_pid()
            assert learner
            os.kill(learner, signal.SIGSTOP)
        if part in ("predictor", "writer"):
            asked = httpx2.Client(base_url=daemon.client.base_url, timeout=0.5)
            path, more = ("/samples", {"label": 1}) if part == "writer" else ("/predict", {})
            with asked, pytest.raises(httpx2.ReadTimeout):
                asked.post(path, json={"x": [0.0] * 64, **more})
        assert manager.falls_silent("WATCHDOG=1", SILENCE_SECONDS)
        assert daemon.process.poll() is None
        if part != "event loop":
            assert daemon.client.get("/health/live").status_code == 200


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """What became of each daemon: they wait for the same silence, so they wait together."""
    folder = tmp_path_factory.mktemp("stuck")
    with ThreadPoolExecutor(len(PARTS)) as pool:
        yield {
            part: pool.submit(falls_silent_while_stuck, folder / part.replace(" ", "-"), part)
            for part in PARTS
        }


@pytest.mark.parametrize("part", PARTS)
def test_the_watchdog_goes_unfed_while_a_part_is_stuck(
    stuck: dict[str, Future[None]], part: str
) -> None:
    stuck[part].result(100)
