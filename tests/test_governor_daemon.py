"""A real daemon on a board's own files, which heat up and cool down; an operator's pause."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.governor.operator_pause import FILE_NAME
from tests.jtop_rig import fake_sysfs
from tests.power_fixtures import FEATURES, Clients
from tests.running import RunningDaemon, wait_for

INTERVAL_SECONDS = 0.2


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return fake_sysfs.build(tmp_path_factory.mktemp("board") / "sys")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, tree) -> Iterator[RunningDaemon]:
    more = (
        f'[power]\nprovider = "ina3221"\ninterval_seconds = {INTERVAL_SECONDS}\nsysfs = "{tree}"\n'
        "[governor]\nmax_watts = 12.0\nmax_celsius = 85.0\nmin_free_bytes = 0\n"
        "max_duty = 0.5\nsafe_duty = 0.4\nmax_predict_seconds = 50.0\n"
        "budget_steps = 100_000\n"
    )
    with RunningDaemon(tmp_path_factory.mktemp("daemon"), FEATURES, more) as daemon:
        wait_for(daemon.learner_up, "the learner", 90)
        post(daemon, 100, 0)
        yield daemon


def learning(daemon: RunningDaemon) -> dict[str, Any]:
    return daemon.client.get("/train").json()["learning"]


def steps_of_the_hour(daemon: RunningDaemon) -> int:
    (budget,) = [limit for limit in learning(daemon)["limits"] if limit["name"] == "budget_steps"]
    return budget["value"]


def is_(daemon: RunningDaemon, state: str) -> bool:
    return learning(daemon)["state"] == state


def post(daemon: RunningDaemon, count: int, first: int) -> None:
    samples = [
        {"x": [float(n % 2)] * 3 + [n / 400] * 3, "label": n % 2, "id": f"g-{n}"}
        for n in range(first, first + count)
    ]
    assert daemon.client.post("/samples", json={"samples": samples}).json()["accepted"] == count


def test_a_board_that_heats_up_is_let_cool_and_predictions_go_on(daemon, tree):
    wait_for(lambda: is_(daemon, "running"), "it to be trusted with its whole duty")
    assert learning(daemon)["duty"] == 0.5
    (told,) = [line for line in daemon.log.read_text().splitlines() if "never slowed" in line]
    assert "governor.max_predict_seconds = 50.0 s is above 10" in told
    wait_for(lambda: daemon.metric("ffedge_learn_steps_total") > 0, "learning")
    with Clients(str(daemon.client.base_url)) as clients:
        fake_sysfs.set_temperature(tree, 2, 86.5)
        began = time.monotonic()
        wait_for(lambda: is_(daemon, "paused"), "the pause")
        # A reading, two periods, and what a loaded machine adds.
        assert time.monotonic() - began < 10
        found = learning(daemon)
        assert found["text"] == "paused: 86.5 C in zone soc0, limit 85.0"
        (reason,) = found["reasons"]
        assert (reason["reason"], reason["value"], reason["limit"]) == ("temperature", 86.5, 85.0)
        assert daemon.client.get("/health/ready").json()["learning"] == found
        assert daemon.metric("ffedge_learner_duty_ratio") == 0
        assert daemon.metric('ffedge_throttled{reason="temperature"}') == 1
        assert daemon.metric('ffedge_throttled{reason="power"}') == 0
        steps = daemon.metric("ffedge_learn_steps_total")
        job = daemon.client.post("/train", json={"max_steps": 3})
        assert (job.status_code, job.json()["state"]) in {(202, "waiting"), (200, "running")}
        assert job.json()["learning"]["text"].startswith("paused: 86.5 C")
        status = [sys.executable, "-m", "daemon", "status", "--url", str(daemon.client.base_url)]
        shown = subprocess.run(status, capture_output=True, text=True, timeout=60, check=True)
        assert "paused: 86.5 C in zone soc0, limit 85.0" in shown.stdout
        held = daemon.metric("ffedge_learn_steps_total")
        assert held <= steps + 16  # one block may have been on its way
        fake_sysfs.set_temperature(tree, 2, 50.0)
        wait_for(lambda: is_(daemon, "slowed"), "it to go on")
        assert "recovering from 86.5 C" in learning(daemon)["text"]
        wait_for(lambda: daemon.metric("ffedge_learn_steps_total") > held, "learning")
        wait_for(clients.all_were_answered, "requests to be answered")


def test_power_beyond_its_limit_slows_learning(daemon, tree):
    fake_sysfs.set_rail(tree, 1, ma=2600)  # 13 W
    wait_for(lambda: is_(daemon, "paused"), "the pause")
    wait_for(lambda: "13.00 W, limit 12" in learning(daemon)["text"], "its reason")
    fake_sysfs.set_rail(tree, 1, ma=1400)
    wait_for(lambda: is_(daemon, "slowed"), "it to go on")


def test_sensors_that_are_gone_leave_the_safe_duty(daemon, tree):
    current = tree / fake_sysfs.HWMON / "curr1_input"
    content = current.read_text()
    current.write_text("")
    wait_for(lambda: ": no reading of power" in learning(daemon)["text"], "doubt")
    found = learning(daemon)
    assert found["duty"] <= 0.4
    assert {"name": "max_watts", "limit": 12.0, "value": None} in found["limits"]
    assert daemon.metric('ffedge_throttled{reason="telemetry"}') == 1
    current.write_text(content)
    wait_for(lambda: ": no reading" not in learning(daemon)["text"], "trust")


def test_an_operator_pauses_and_resumes(daemon):
    pause = daemon.client.post("/train/pause", json={"reason": "maintenance"})
    assert pause.status_code == 200
    assert pause.json()["durable"] is True
    assert pause.json()["learning"]["state"] == "paused"
    assert "by an operator (maintenance), until resumed" in pause.json()["learning"]["text"]
    again = daemon.client.post("/train/pause", json={"reason": "maintenance"})
    assert again.status_code == 200
    resumed = [daemon.client.post("/train/resume") for _ in range(2)]
    assert [answer.status_code for answer in resumed] == [200, 200]
    assert "operator" not in {r["reason"] for r in resumed[0].json()["learning"]["reasons"]}
    short = daemon.client.post("/train/pause", json={"seconds": 1.0})
    assert short.json()["learning"]["state"] == "paused"
    wait_for(lambda: not is_(daemon, "paused"), "its time to be up")


@pytest.mark.parametrize(
    "body", [{"seconds": 0}, {"seconds": -1}, {"reason": 7}, {"minutes": 1}, {"seconds": 1e9}]
)
def test_a_pause_that_cannot_be_read_is_refused_and_changes_nothing(daemon, body):
    answer = daemon.client.post("/train/pause", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_field")
    assert "operator" not in learning(daemon)["text"]


def test_a_pause_outlives_the_learner_and_the_daemon(daemon):
    """The last to use this daemon."""
    wait_for(lambda: steps_of_the_hour(daemon) > 0, "steps of its budget")
    daemon.client.post("/train/pause", json={"reason": "maintenance"})
    before = daemon.learner_pid()
    subprocess.run(["kill", "-9", str(before)], check=True)
    wait_for(lambda: daemon.learner_pid() != before and daemon.learner_up(), "the next learner")
    steps = daemon.metric("ffedge_learn_steps_total")
    assert steps_of_the_hour(daemon) > 0  # the budget is not the learner's
    post(daemon, 200, 10_000)
    asked = daemon.client.post("/train").headers["Location"]
    daemon.kill_group()
    daemon.client.close()
    assert (daemon.store / FILE_NAME).exists()
    with daemon:
        assert "by an operator (maintenance)" in learning(daemon)["text"]
        assert "the daemon ended" in daemon.client.get(asked).json()["error"]
        wait_for(daemon.learner_up, "the learner")
        wait_for(lambda: daemon.metric("ffedge_learner_backlog_samples") or None, "its backlog")
        assert daemon.metric("ffedge_learn_steps_total") == 0 <= steps
        assert steps_of_the_hour(daemon) == 0  # but the daemon's
        daemon.client.post("/train/resume")
        wait_for(lambda: daemon.metric("ffedge_learn_steps_total") > 0, "it to learn")
