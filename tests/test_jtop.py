"""The real jtop service and client: power reaches `GET /metrics`, no failure reaches the API."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from signal import SIGCONT, SIGKILL, SIGSTOP
from types import SimpleNamespace

import pytest

from daemon.config import PowerSettings
from daemon.power import PowerMonitor, reader_command
from daemon.power_log import PowerLog
from tests.jtop_rig import fake_sysfs
from tests.jtop_rig.service import JtopService, jetson_stats_python
from tests.power_fixtures import FEATURES, Clients
from tests.running import RunningDaemon, wait_for

VERSIONS = ("7.2.2", "4.3.2")
INTERVAL_SECONDS = 0.5
UP = "ffedge_power_up"

CONFIG = """
[power]
provider = "jtop"
interval_seconds = {interval}
reader_python = {python}
jtop_socket = {socket}
"""


@pytest.fixture(scope="module", params=VERSIONS)
def board(request, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A daemon on a board whose jtop service, and client, are of one version."""
    folder = tmp_path_factory.mktemp("board")
    service = JtopService(jetson_stats_python(request.config.cache, request.param), folder)
    values = {"python": service.python, "socket": service.socket}
    quoted = {key: json.dumps(str(value)) for key, value in values.items()}
    more = CONFIG.format(interval=INTERVAL_SECONDS, **quoted)
    with RunningDaemon(folder, FEATURES, more) as daemon:
        try:
            service.start()
            yield SimpleNamespace(daemon=daemon, service=service, version=request.param)
        finally:
            service.kill()


@pytest.fixture
def up(request, board):
    """The board with its power known, whatever the test before has done."""
    older = board.version != VERSIONS[0] and request.node.get_closest_marker("newest_first")
    if older and not request.config.getoption("--every-failure"):
        pytest.skip(f"seen with {VERSIONS[0]}; on this one too by --every-failure")
    wait_for(lambda: board.daemon.metric(UP) == 1, "power to be known")
    return board


def metrics(board, prefix: str) -> dict[str, float]:
    lines = board.daemon.client.get("/metrics").text.splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith(prefix)
    }


def down_within_ten_seconds(board) -> None:
    began = time.monotonic()
    wait_for(lambda: board.daemon.metric(UP) == 0, "power to be unknown")
    assert time.monotonic() - began < 10


def test_readings_reach_the_metrics_in_base_units(up):
    metric = up.daemon.metric
    assert metric("ffedge_board_power_watts") == 7.0
    assert metrics(up, "ffedge_rail_power_watts") == {
        'ffedge_rail_power_watts{rail="VDD_CPU_GPU_CV"}': 2.4,
        'ffedge_rail_power_watts{rail="VDD_SOC"}': 2.1,
    }
    celsius = metrics(up, "ffedge_temperature_celsius")
    assert celsius['ffedge_temperature_celsius{zone="cpu"}'] == 47.218
    assert celsius['ffedge_temperature_celsius{zone="tj"}'] == 47.3
    assert metric("ffedge_gpu_utilization_ratio") == 0.35
    assert metrics(up, "ffedge_power_info") == {
        'ffedge_power_info{nvpmodel="25W",provider="jtop"}': 1.0
    }
    assert metric("ffedge_ram_total_bytes") > metric("ffedge_ram_used_bytes") > 1 << 20
    assert metric("ffedge_ram_gpu_used_bytes") is None, "this kernel does not tell"
    assert up.daemon.client.get("/health/ready").json()["power"] == {
        "up": True,
        "provider": "jtop",
        "refused": {},
        "reader": None,
    }


@pytest.mark.newest_first
def test_changes_of_the_board_reach_the_metrics(up):
    tree = up.service.tree
    fake_sysfs.set_rail(tree, 1, ma=2000)
    fake_sysfs.set_temperature(tree, 3, 91.5)
    fake_sysfs.set_gpu_load(tree, 80)
    up.service.set_power_mode(2)
    metric = up.daemon.metric
    wait_for(lambda: metric("ffedge_board_power_watts") == 10.0, "10 W")
    wait_for(lambda: metric('ffedge_temperature_celsius{zone="tj"}') == 91.5, "91.5 °C")
    wait_for(lambda: metric("ffedge_gpu_utilization_ratio") == 0.8, "a busy GPU")
    mode = 'ffedge_power_info{nvpmodel="MAXN_SUPER",provider="jtop"}'
    wait_for(lambda: metric(mode) == 1, "the power mode")
    fake_sysfs.set_rail(tree, 1, ma=1400)
    wait_for(lambda: metric("ffedge_board_power_watts") == 7.0, "7 W")


@pytest.mark.newest_first
def test_energy_is_the_power_times_the_time(up):
    name = "ffedge_board_energy_joules_total"
    wait_for(lambda: (up.daemon.metric(name) or 0) > 0, "energy")
    # Both ends are seen at a scrape, up to one reading late.
    first, begun = up.daemon.metric(name), time.monotonic()
    wait_for(lambda: up.daemon.metric(name) > first + 7 * 2, "two seconds of 7 W")
    seconds = time.monotonic() - begun
    assert up.daemon.metric(name) - first == pytest.approx(7 * seconds, abs=7 * 2)


def test_a_service_that_is_killed_costs_no_request_and_its_return_is_noticed(up):
    with Clients(str(up.daemon.client.base_url)) as clients:
        up.service.kill()
        down_within_ten_seconds(up)
        for name in ("ffedge_board_power_watts", "ffedge_rail", "ffedge_temp"):
            assert not [key for key in metrics(up, name) if "watts" in key or "jtop" in key]
        refused = up.daemon.client.get("/health/ready").json()["power"]["refused"]
        assert set(refused) == {"jtop"}
        assert refused["jtop"]
        up.service.start()
        wait_for(lambda: up.daemon.metric(UP) == 1, "power to be known again")
        wait_for(clients.all_were_answered, "requests to be answered")


@pytest.mark.newest_first
def test_a_service_that_hangs_costs_no_request_and_its_return_is_noticed(up):
    with Clients(str(up.daemon.client.base_url)) as clients:
        up.service.signal(SIGSTOP)
        down_within_ten_seconds(up)
        up.service.signal(SIGCONT)
        wait_for(lambda: up.daemon.metric(UP) == 1, "power to be known again")
        wait_for(clients.all_were_answered, "requests to be answered")


@pytest.mark.newest_first
def test_a_reader_that_is_killed_costs_no_request_and_is_replaced(up):
    restarts = up.daemon.metric("ffedge_power_reader_restarts_total")
    assert metrics(up, 'ffedge_process_resident_bytes{process="power_reader"}')
    with Clients(str(up.daemon.client.base_url)) as clients:
        started = [
            json.loads(line)["pid"]
            for line in up.daemon.log.read_text().splitlines()
            if '"power reader started"' in line
        ]
        os.kill(started[-1], SIGKILL)
        wait_for(
            lambda: up.daemon.metric("ffedge_power_reader_restarts_total") > restarts, "a restart"
        )
        wait_for(lambda: up.daemon.metric(UP) == 1, "power to be known again")
        wait_for(clients.all_were_answered, "requests to be answered")


@pytest.fixture
def monitored(request, tmp_path):
    """A client of 7.2.2 in search of its service; a service of that version, not started."""
    service = JtopService(jetson_stats_python(request.config.cache, "7.2.2"), tmp_path)
    settings = PowerSettings(
        provider="jtop",
        interval_seconds=INTERVAL_SECONDS,
        reader_python=str(service.python),
        jtop_socket=service.socket,
    )
    monitor = PowerMonitor(reader_command(settings), INTERVAL_SECONDS, PowerLog(tmp_path))
    monitor.start()
    try:
        yield SimpleNamespace(monitor=monitor, service=service)
    finally:
        monitor.stop()
        service.kill()


def refusal(board) -> str:
    return board.monitor.sources()["refused"].get("jtop", "")


def then_the_right_service_is_found(board) -> None:
    assert not board.monitor.up
    board.service.start()
    wait_for(lambda: board.monitor.up, "power to be known")
    assert board.monitor.reading.watts == 7.0
    assert refusal(board) == ""


def test_an_odd_sensor_costs_no_power(monitored):
    """One that is off, and one whose name is no label of a metric."""
    zones = monitored.service.tree / fake_sysfs.THERMAL
    for number, (kind, milli_celsius) in enumerate([("cv0-thermal", -274_000), ("TMEM&1", 40_000)]):
        zone = zones / f"thermal_zone{number + 4}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{milli_celsius}\n")
    monitored.service.start()
    wait_for(lambda: monitored.monitor.up, "power to be known")
    celsius = monitored.monitor.reading.celsius
    assert set(celsius) == {"cpu", "gpu", "soc0", "tj", "TMEM_1"}
    assert celsius["TMEM_1"] == 40.0


def test_a_service_of_another_version_is_refused_and_says_so(request, monitored):
    other = jetson_stats_python(request.config.cache, "4.3.2")
    wait_for(lambda: refusal(monitored).startswith("no jtop service at"), "no service")
    monitored.service.start(other)
    wait_for(lambda: "4.3.2" in refusal(monitored), "the versions to be compared")
    monitored.service.kill()
    then_the_right_service_is_found(monitored)


@pytest.mark.every_failure
def test_a_folder_in_the_sockets_place_is_refused(monitored):
    """What Docker makes of a socket that is mounted before it is there."""
    monitored.service.socket.mkdir()
    wait_for(lambda: "is not a socket" in refusal(monitored), "the refusal")
    monitored.service.socket.rmdir()
    then_the_right_service_is_found(monitored)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="ends", marks=pytest.mark.every_failure),
        pytest.param(b"#garbage" * 100, id="lies"),
        pytest.param(None, id="hangs"),
    ],
)
def test_whatever_listens_in_the_services_place_is_refused(monitored, answer):
    path = monitored.service.socket
    stopping = threading.Event()
    held: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while not stopping.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            held.append(client)
            if answer is not None:
                with closing(client):
                    client.send(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            wait_for(lambda: held, "the client")
            wait_for(lambda: refusal(monitored)[:15] not in ("", "no jtop service"), "a refusal")
            if answer is None:
                wait_for(lambda: "still hangs" in refusal(monitored), "no second connection")
                assert len(held) == 1
        finally:
            stopping.set()
            thread.join()
            for client in held:
                client.close()
    path.unlink()
    then_the_right_service_is_found(monitored)
