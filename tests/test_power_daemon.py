"""A real daemon whose power reader lies, hangs and dies; its energy and log; `ffedge status`."""

from __future__ import annotations

import http.server
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from daemon.asking import AskingError
from daemon.power_log import DATABASE_NAME
from daemon.power_provider import PROTOCOL
from daemon.status import read_status
from tests.daemon_fixtures import alive
from tests.jtop_rig import fake_sysfs
from tests.power_fixtures import FEATURES, Clients
from tests.running import RunningDaemon, wait_for

# What it does is in a file that the test writes; it is the whole of the interpreter's command line.
FAKE_READER = """\
#!{python} -IS
import json, pathlib, time
mood = pathlib.Path({mood!r})
while True:
    fields = {{"protocol": {protocol}, "monotonic_seconds": time.monotonic(), "provider": "jtop",
              "interval_seconds": 0.2, "refused": {{}}, "watts": 7.0, "rails": {{"VDD_SOC": 2.0}}}}
    text = mood.read_text()
    if text == "hang":
        time.sleep(600)
    if text == "die":
        raise SystemExit(1)
    print("noise" if text == "noise" else json.dumps(fields | json.loads(text)), flush=True)
    time.sleep(0.2)
"""
WELL = "{}"
ILL = {
    "hangs": "hang",
    "lies": '{"watts": -7}',
    "has lost its source": '{"watts": null, "rails": {}, "provider": "none"}',
}
MORE_ILL = {"dies": "die", "talks nonsense": "noise", "is of another version": '{"protocol": 9}'}
UP = "ffedge_power_up"


@pytest.fixture(scope="module")
def mood(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("mood") / "mood"
    file.write_text(WELL)
    return file


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, mood) -> Iterator[RunningDaemon]:
    reader = mood.with_name("reader")
    reader.write_text(FAKE_READER.format(python=sys.executable, protocol=PROTOCOL, mood=str(mood)))
    reader.chmod(0o700)
    more = f"[power]\ninterval_seconds = 0.2\nreader_python = {json.dumps(str(reader))}\n"
    with RunningDaemon(tmp_path_factory.mktemp("daemon"), FEATURES, more) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def _well(mood):
    mood.write_text(WELL)


def governed(daemon: RunningDaemon) -> dict:
    return daemon.client.get("/train").json()["learning"]


def is_up(daemon: RunningDaemon) -> bool:
    return daemon.metric(UP) == 1


@pytest.mark.parametrize(
    "illness", [*ILL, *(pytest.param(more, marks=pytest.mark.every_failure) for more in MORE_ILL)]
)
def test_an_ill_reader_costs_no_request_and_power_comes_back(daemon, mood, illness):
    wait_for(lambda: is_up(daemon), "power to be known")
    with Clients(str(daemon.client.base_url)) as clients:
        mood.write_text((ILL | MORE_ILL)[illness])
        began = time.monotonic()
        wait_for(lambda: daemon.metric(UP) == 0, "power to be unknown")
        assert time.monotonic() - began < 10
        wait_for(lambda: governed(daemon)["duty"] <= 0.25, "the safe duty")
        assert "telemetry" in {reason["reason"] for reason in governed(daemon)["reasons"]}
        assert daemon.metric("ffedge_board_power_watts") is None
        assert daemon.metric('ffedge_rail_power_watts{rail="VDD_SOC"}') is None
        mood.write_text(WELL)
        wait_for(lambda: is_up(daemon), "power to be known again")
        assert daemon.metric("ffedge_board_power_watts") == 7.0
        wait_for(clients.all_were_answered, "requests to be answered")


def test_what_is_learned_has_its_energy(daemon):
    wait_for(lambda: is_up(daemon), "power to be known")
    samples = [
        {"x": [float(i % 2)] * 3 + [i / 400] * 3, "label": i % 2, "id": f"e-{i}"}
        for i in range(250)
    ]
    answer = daemon.client.post("/samples", json={"samples": samples})
    assert answer.json()["accepted"] == 250
    wait_for(lambda: (daemon.metric("ffedge_learn_sample_energy_joules") or 0) > 0, "energy")
    learned = daemon.metric("ffedge_learn_energy_joules_total")
    assert 0 < learned <= daemon.metric("ffedge_board_energy_joules_total")
    assert daemon.metric('ffedge_rail_energy_joules_total{rail="VDD_SOC"}') == pytest.approx(
        daemon.metric("ffedge_board_energy_joules_total") * 2 / 7, rel=0.3
    )


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", "status", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_status_prints_one_object(daemon):
    wait_for(lambda: is_up(daemon), "power to be known")
    done = status("--json", "--url", str(daemon.client.base_url))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["engine"] == "torch"
    assert found["ready"] is True
    assert found["model_version"] == daemon.client.get("/models").json()["active"]
    assert found["samples"] == daemon.metric("ffedge_samples_stored")
    assert (found["power_up"], found["power_provider"]) == (True, "jtop")
    assert (found["board_watts"], found["rail_watts"]) == (7.0, {"VDD_SOC": 2.0})
    assert found["board_energy_joules"] > 0
    assert found["nvpmodel"] is None
    assert found["temperature_celsius"] == {}
    assert found["ram_total_bytes"] > found["ram_used_bytes"] > 0
    assert {"server", "power_reader"} <= set(found["process_resident_bytes"])


def test_status_prints_a_table_that_says_what_is_unknown(daemon, mood):
    wait_for(lambda: is_up(daemon), "power to be known")
    done = status("--url", str(daemon.client.base_url))
    assert done.returncode == 0
    lines = {line[:11].strip(): line for line in done.stdout.splitlines() if line[:1].strip()}
    for there_once in ("classes", "events"):  # a candidate was judged, errors were more frequent
        lines.pop(there_once, None)
    assert list(lines) == [
        *("daemon", "engine", "serves", "samples", "learner", "learning"),
        *("power", "energy", "temperature", "memory", "power mode"),
    ]
    assert "7.00 W from jtop (VDD_SOC 2.00 W)" in done.stdout
    assert "unknown" in lines["temperature"]
    mood.write_text(ILL["has lost its source"])
    wait_for(lambda: not is_up(daemon), "power to be unknown")
    assert "unknown from none" in status("--url", str(daemon.client.base_url)).stdout


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    """Something else than a daemon, that answers every request with 200 and a text."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_status_without_a_daemon_is_one_clear_line():
    address = f"http://127.0.0.1:{unused_port()}"
    done = status("--url", address, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ffedge: no daemon answers at {address} (")
    assert line.endswith("start it with ffedge serve, or name another by --url")


@pytest.mark.parametrize("address", ["127.0.0.1:8484", "http://127.0.0.1:port", "file:///etc"])
def test_status_of_no_address_is_a_clear_error(address):
    with pytest.raises(AskingError, match=r"address|by --url"):
        read_status(address)


@pytest.mark.parametrize("text", [b"<html>hello</html>", b"{}", b"[1]", b"\xff"])
def test_status_of_another_server_is_a_clear_error(text):
    with answering(text) as address, pytest.raises(AskingError) as caught:
        read_status(address)
    assert str(caught.value) == (
        f"what answers at {address} is no ffedge of this version: is --url right?"
    )


def test_a_reader_that_cannot_be_started_is_seen_where_one_looks(tmp_path):
    python = tmp_path / "nope"
    more = f"[power]\nreader_python = {json.dumps(str(python))}\n"
    with RunningDaemon(tmp_path, FEATURES, more) as daemon:

        def reader() -> str | None:
            return daemon.client.get("/health/ready").json()["power"]["reader"]

        wait_for(reader, "the reason")
        done = status("--url", str(daemon.client.base_url))
        found = read_status(str(daemon.client.base_url))["power_reader"]
    assert found.startswith("cannot be started: [Errno 2]")
    assert found.endswith(f"it is run by {python} (power.reader_python)")
    assert "unknown, no reader" in done.stdout
    assert "power reader: cannot be started" in done.stdout


def test_the_log_is_kept_beside_the_samples(daemon):
    assert daemon.metric("ffedge_power_log_up") == 1
    assert (daemon.store / DATABASE_NAME).exists()


def test_a_damaged_log_costs_nothing(tmp_path):
    """On a board's own files, read by the reader that the daemon brings."""
    tree = fake_sysfs.build(tmp_path / "sys")
    more = f'[power]\nprovider = "ina3221"\ninterval_seconds = 0.2\nsysfs = "{tree}"\n'
    running = RunningDaemon(tmp_path, FEATURES, more)
    running.store.mkdir()
    (running.store / DATABASE_NAME).write_bytes(b"damaged" * 1000)
    with running as daemon:
        wait_for(lambda: daemon.metric("ffedge_power_log_up") == 0, "the log to go off")
        with Clients(str(daemon.client.base_url)) as clients:
            wait_for(clients.all_were_answered, "requests to be answered")
        wait_for(lambda: is_up(daemon), "power to be known all the same")
        assert daemon.metric("ffedge_board_power_watts") == 7.0
        assert daemon.log.read_text().count("power log is off") == 1


def test_a_daemon_that_is_told_to_stop_takes_its_reader_along_and_keeps_its_readings(daemon):
    """The last to use this daemon."""
    wait_for(daemon.learner_up, "the learner")
    resident = 'ffedge_process_resident_bytes{process="power_reader"}'
    assert daemon.metric(resident) > 0
    started = [
        line for line in daemon.log.read_text().splitlines() if "power reader started" in line
    ]
    daemon.process.terminate()
    assert daemon.process.wait(20) == 0
    assert not alive(json.loads(started[-1])["pid"])
    with closing(sqlite3.connect(daemon.store / DATABASE_NAME)) as connection:
        (kept,) = connection.execute("SELECT sum(readings) FROM hours WHERE watts = 7").fetchone()
    assert kept >= 2
