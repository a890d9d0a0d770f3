"""`ffedge status` shows how well it goes: lately, by class, and what nothing is known of."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from daemon.status import read_status, show_status
from daemon.telemetry import Telemetry

READY = {
    "ready": True,
    "ingest": {"cause": None},
    "removed": None,
    "learner": True,
    "learning": {
        "state": "running",
        "text": "running",
        "duty": 1.0,
        "reasons": [],
        "unmeasured": [],
    },
    "power": {"up": False, "provider": None, "refused": {}, "reader": None},
}


class Spoken(HTTPServer):
    """Says what a daemon with these metrics would."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(CollectorRegistry())
        self.telemetry.served_by("torch")
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Spoken

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/health/ready": json.dumps(READY).encode(),
            "/models": json.dumps({"model": "mlp", "active": "3", "classes": [1, 2]}).encode(),
            "/metrics": generate_latest(self.server.telemetry.registry),
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answers[self.path])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def daemon() -> Iterator[Spoken]:
    server = Spoken()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def shown(daemon: Spoken, capsys: pytest.CaptureFixture[str]) -> str:
    show_status(daemon.address, as_json=False)
    return " ".join(capsys.readouterr().out.split())


def test_before_there_are_scores_it_says_so(daemon, capsys) -> None:
    status = read_status(daemon.address)
    assert status["recent_accuracy"] is status["forgetting"] is status["delayed_accuracy"] is None
    assert status["class_accuracy"] == {}
    text = shown(daemon, capsys)
    assert "unknown over the newest 500, unknown faded" in text
    for nothing in ("labelled later", "classes weakest", "forgotten", "HOLD-OUT SAMPLE"):
        assert nothing not in text


def test_scores_stand_beside_each_other(daemon, capsys) -> None:
    telemetry = daemon.telemetry
    telemetry.progressive(0.81, 0.92, 0.93)
    telemetry.delayed_labels.labels("right").inc(3)
    telemetry.delayed_labels.labels("wrong").inc()
    telemetry.delayed_accuracy.set(0.75)
    telemetry.class_accuracy.set("holdout", {"dog": 0.5, "cat": 1.0, "7": 0.25, "8": 0.9})
    telemetry.class_accuracy.set("progressive", {"dog": 0.1})
    telemetry.forgetting.set(0.04)
    telemetry.holdout_missing_classes.set(2)
    status = read_status(daemon.address)
    assert (status["recent_accuracy"], status["faded_accuracy"]) == (0.92, 0.93)
    assert status["class_accuracy"] == {"dog": 0.5, "cat": 1.0, "7": 0.25, "8": 0.9}
    assert status["delayed_labels"] == {"right": 3, "wrong": 1}
    text = shown(daemon, capsys)
    assert "92.0% over the newest 500, 93.0% faded" in text
    assert "75.0% of predictions labelled later (4 since the start)" in text
    assert "classes weakest 7 25%, dog 50%, 8 90%; forgotten 4.0%; 2 WITHOUT A HOLD-OUT" in text
