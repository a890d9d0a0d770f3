"""`ffedge status` and `models` show how well it goes: lately, by class, by the gate's word."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from daemon.__main__ import app
from daemon.asking import AskingError
from daemon.model_words import why_refused
from daemon.status import read_status, show_status
from daemon.telemetry import Telemetry

READY = {
    "ready": True,
    "ingest": {"cause": "full", "why": "the disk is full"},
    "removed": None,
    "learner": True,
    "learning_paused": "learning pauses: the disk does not take it",
    "learning": {
        "state": "running",
        "text": "running",
        "duty": 1.0,
        "reasons": [],
        "unmeasured": [],
    },
    "power": {"up": False, "provider": None, "refused": {}, "reader": None},
}
MODELS: dict[str, Any] = {
    "model": "mlp",
    "active": "3",
    "classes": [1, 2],
    "versions": [{"version": "3", "gate": None}],
    "refused": [],
    "probation": [],
}


def judged(number: int, minute: int, **changes: Any) -> dict[str, Any]:
    """A candidate and the decision about it, refused unless changed."""
    gate = {
        "incumbent": "3",
        "decision": "refused",
        "reason": "accuracy",
        "n": 100,
        "margin": 0.01,
        "incumbent_accuracy": 0.9,
        "best_accuracy": 0.93,
        "candidate_accuracy": 0.5,
        "decided": f"2026-11-28T22:{minute}:01.000Z",
    }
    return {"version": str(number), "gate": gate | changes}


class Spoken(HTTPServer):
    """Says what a daemon with these metrics would."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(CollectorRegistry())
        self.telemetry.served_by("torch")
        self.models = dict(MODELS)
        self.events: list[dict[str, Any]] | None = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Spoken

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/health/ready": json.dumps(READY).encode(),
            "/models": json.dumps(self.server.models).encode(),
            "/train/events?limit=3": json.dumps(
                {"error": "storage"}
                if self.server.events is None
                else {"events": self.server.events}
            ).encode(),
            "/metrics": generate_latest(self.server.telemetry.registry),
        }
        unread = self.path.startswith("/train/events") and self.server.events is None
        self.send_response(503 if unread else 200)
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


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_an_option_that_is_no_number_is_named(daemon, seconds) -> None:
    done = CliRunner().invoke(app, ["pause", "--seconds", seconds, "--url", daemon.address])
    assert isinstance(done.exception, AskingError)
    assert "an option is nan or inf" in str(done.exception)


def test_before_there_are_scores_it_says_so(daemon, capsys) -> None:
    status = read_status(daemon.address)
    assert status["recent_accuracy"] is status["forgetting"] is status["delayed_accuracy"] is None
    assert status["class_accuracy"] == {}
    text = shown(daemon, capsys)
    assert "accuracy unknown over all, unknown over the newest 500, unknown faded" in text
    assert "hold-out accuracy unknown samples" in text
    assert "learning running learning pauses: the disk does not take it power" in text
    assert "NONE IS TAKEN: the disk is full learner up, 0 learned" in text
    daemon.telemetry.learner_heartbeat.set_function(lambda: 12.4)
    assert "learner up, last heard 12 s ago, 0 learned" in shown(daemon, capsys)
    for nothing in (
        *("as of", "probation", "refused", "events"),
        "labelled later",
        "classes weakest",
        "forgotten",
        "HOLD-OUT SAMPLE",
    ):
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
    assert "classes weakest at the last decision 7 25%, dog 50%, 8 90%; forgotten 4.0%;" in text
    assert "2 WITHOUT A HOLD-OUT" in text


def test_refusals_probation_and_events_are_told(daemon, capsys) -> None:
    accepted = judged(3, 10, decision="accepted", reason=None, candidate_accuracy=0.95)
    last = judged(9, 20, reason="[/x]", incumbent_accuracy=0.88)  # its clock had been set back
    daemon.models |= {
        "versions": [accepted, {"version": "2", "gate": None}],
        "refused": [
            judged(8, 30),
            last,
            judged(1, 50, incumbent="2"),
            judged(0, 55, reason="overtaken", incumbent_accuracy=0.1),
        ],
        "probation": [
            {"version": "3", "against": "2", "n": 34, "samples": 120}
            | {"correct": 30, "previous_correct": 31, "lost": 2}
        ],
    }
    daemon.events = [
        {"kind": "drift", "text": "errors", "seq": 1970, "at": "2026-11-28T22:59:00.000Z"}
    ]
    status = read_status(daemon.address)
    assert status["probation"] == daemon.models["probation"]
    assert (status["refused"]["in_a_row"], status["refused"]["last"]) == (2, "[/x]")
    assert (status["events"], status["holdout_accuracy"]) == (daemon.events, 0.88)
    text = shown(daemon, capsys)
    assert "accuracy 88.0% as of 2026-11-28 22:20Z version 3 on probation: 34 of 120 sam" in text
    assert "30 right, 31 by version 2 2 candidates in a row refused, last: [/x] samples" in text
    assert "events drift at sample 1,970 on 2026-11-28 22:59Z: errors learning" in text
    daemon.models["refused"], daemon.events = [judged(8, 30)], None
    text = shown(daemon, capsys)
    assert "1 candidate refused, last: accuracy, 50.0% where 92.0% is wanted" in text
    few = {"reason": "too_few_samples", "n": 7, "min_samples": 20}
    assert why_refused(judged(8, 30, **few)["gate"]).endswith(
        ", 7 different ones in the hold-out where 20 are wanted"
    )
    near = judged(8, 30, best_accuracy=0.8512, candidate_accuracy=0.8409, incumbent_accuracy=0.8)
    assert why_refused(near["gate"]) == "accuracy, 84.09% where 84.12% is wanted"
    assert "events unknown: what was recorded cannot be read now" in text


def test_models_say_what_each_version_is_kept_for(daemon, monkeypatch) -> None:
    entry = {"state": "good", "parent": None, "last_seq": 7, "created": "2026-11-28T22:59:59.000Z"}
    daemon.models |= {
        "versions": [{"version": str(n), "gate": None} | entry for n in (3, 2, 1)],
        "previous": "2",
        "best": "3",
        "probation": [
            {"version": "3", "against": "1", "n": 0, "samples": 9}
            | {"correct": 0, "previous_correct": 0, "lost": 0}
        ],
        "changes": [
            {"result": "rolled_back", "from": "4", "to": "3", "by": by, "reason": reason}
            | {"decided": "2026-11-28T22:59:59.000Z"}
            for by, reason in (("operator", "operator"), ("operator", "a\n\x1b[2Jb"))
        ],
    }
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["models", "--url", daemon.address])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert [line for line in lines if line.endswith("7 - 2026-11-28 22:59Z")] == [
        "3 serves, best good - 7 - 2026-11-28 22:59Z",
        "2 previous good - 7 - 2026-11-28 22:59Z",
        "1 compared with good - 7 - 2026-11-28 22:59Z",
    ]
    assert lines[-2:] == [
        "2026-11-28 22:59Z rolled back from 4 to 3 by operator",
        "2026-11-28 22:59Z rolled back from 4 to 3 by operator: a [2Jb",
    ]
