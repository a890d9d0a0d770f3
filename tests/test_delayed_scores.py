"""A prediction is scored when its label comes: once, as it was answered, for its version."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.http import create_app
from daemon.serving.delayed_scores import VERSIONS_KEPT, DelayedScores
from daemon.serving.slot import Served
from daemon.telemetry import Telemetry
from daemon.wiring.server import build_service
from engines import open_predict_engine
from tests.test_kept_predictions import SILENT, X, label, write_config


class Daemon(TestClient):
    """A client, and the parts behind what it asks."""

    def __init__(self, folder: Path) -> None:
        self.service = build_service(load_settings(write_config(folder)), SILENT)
        super().__init__(create_app(self.service))


def serve(client: Daemon, number: int, answer: Any) -> None:
    """Have a version serve that always answers the same."""
    slot = client.service.slot
    weights = dataclasses.replace(slot.current.weights, version=number, classes=(answer,))
    slot.swap(Served(weights, open_predict_engine("torch").open(weights)))


def ask(client: Daemon, answer: Any = None) -> str:
    told = client.post("/predict", json={"x": X, "keep": True}).json()
    assert answer is None or told["label"] == answer
    return told["id"]


def delayed(client: Daemon) -> dict[str, dict[str, int]]:
    return {of["version"]: of["delayed"] for of in client.get("/models").json()["versions"]}


def metric(client: Daemon, name: str) -> float | None:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), None)


RIGHT = 'ffedge_delayed_labels_total{result="right"}'
WRONG = 'ffedge_delayed_labels_total{result="wrong"}'
RATIO = "ffedge_delayed_accuracy_ratio"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as client:
        yield client


def test_each_label_is_scored_once_against_what_was_answered(client: Daemon) -> None:
    serve(client, 1, 2)
    assert (metric(client, RIGHT), metric(client, WRONG), metric(client, RATIO)) == (0, 0, None)
    right, wrong, unlabelled = (ask(client, 2) for _ in range(3))
    assert unlabelled
    assert label(client, right, "2").status_code == 201  # the same class as 2
    assert label(client, wrong, 1).status_code == 201
    assert delayed(client) == {"1": {"right": 1, "wrong": 1}}
    for repeated in (label(client, right, 2), label(client, wrong, 1), label(client, wrong, 0)):
        assert repeated.status_code in (200, 409)
    assert delayed(client) == {"1": {"right": 1, "wrong": 1}}
    assert (metric(client, RIGHT), metric(client, WRONG), metric(client, RATIO)) == (1, 1, 0.5)


def test_it_counts_for_the_version_that_answered_whatever_serves_now(client: Daemon) -> None:
    serve(client, 1, 2)
    old = ask(client, 2)
    serve(client, 7, 0)
    new = ask(client, 0)
    for prediction in (old, new):
        assert label(client, prediction, 0).status_code == 201
    scores = client.service.delayed
    assert scores.of(1) == {"right": 0, "wrong": 1}
    assert scores.of(7) == {"right": 1, "wrong": 0}


def test_what_was_answered_before_anything_was_learned_is_wrong(client: Daemon) -> None:
    assert label(client, ask(client), 0).status_code == 201
    assert delayed(client) == {"1": {"right": 0, "wrong": 1}}


def test_a_correction_is_not_scored_again(client: Daemon) -> None:
    serve(client, 1, 2)
    prediction = ask(client, 2)
    assert label(client, prediction, 1).status_code == 201
    body = {"label": 2, "replace": True}
    assert client.post(f"/samples/{prediction}/label", json=body).status_code == 200
    assert label(client, prediction, 2).json()["duplicates"] == 1
    assert delayed(client) == {"1": {"right": 0, "wrong": 1}}


def test_labels_with_a_key_and_in_batches_are_scored_once(client: Daemon) -> None:
    serve(client, 1, 2)
    first, second = ask(client, 2), ask(client, 2)
    entries = [
        {"inference_id": first, "label": 2},
        {"x": X, "label": 1},
        {"inference_id": second, "label": 1},
        {"inference_id": second, "label": 1},
    ]
    for _ in range(2):
        answer = client.post(
            "/samples", json={"samples": entries}, headers={"Idempotency-Key": "k"}
        )
        assert (answer.status_code, answer.json()["accepted"]) == (201, 3)
    assert delayed(client) == {"1": {"right": 1, "wrong": 1}}


def test_what_is_refused_is_not_scored(client: Daemon) -> None:
    serve(client, 1, 2)
    prediction = ask(client, 2)
    for value in ("", "x" * 65, 1.5, None):
        assert label(client, prediction, value).status_code == 422
    assert delayed(client) == {"1": {"right": 0, "wrong": 0}}
    assert label(client, prediction, 2).status_code == 201
    assert delayed(client) == {"1": {"right": 1, "wrong": 0}}


def test_counts_by_version_outlive_the_daemon(tmp_path: Path) -> None:
    for run in range(2):
        with Daemon(tmp_path) as client:
            serve(client, 1, 2)
            for value in (2, 2, 1):
                assert label(client, ask(client, 2), value).status_code == 201
            expected = {"right": 2 * (run + 1), "wrong": run + 1}
            assert delayed(client)["1"] == expected


def test_records_do_not_pile_up_while_they_cannot_be_written() -> None:
    records: list[tuple[int, dict[str, Any]]] = []
    pending: list[Future[None]] = []

    def record(version: int, body: dict[str, Any]) -> Future[None]:
        records.append((version, body))
        pending.append(Future())
        return pending[-1]

    scores = DelayedScores(Telemetry(CollectorRegistry()), record, [])
    for _ in range(100):
        scores.add(3, right=True)
        scores.save()
    assert records == [(3, {"version": "3", "right": 1, "wrong": 0})]
    pending[0].set_result(None)
    scores.save()
    assert records[1:] == [(3, {"version": "3", "right": 100, "wrong": 0})]
    scores.add(4, right=False)
    scores.save(last=True)
    assert records[2:] == [(4, {"version": "4", "right": 0, "wrong": 1})]


def test_old_versions_are_forgotten() -> None:
    past = [{"version": str(version), "right": 1, "wrong": 0} for version in range(VERSIONS_KEPT)]
    scores = DelayedScores(Telemetry(CollectorRegistry()), lambda *_: Future(), past)
    scores.add(VERSIONS_KEPT, right=True)
    assert scores.of(0) == {"right": 0, "wrong": 0}
    assert scores.of(1) == scores.of(VERSIONS_KEPT) == {"right": 1, "wrong": 0}
