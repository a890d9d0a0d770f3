"""`/health/ready`: whether samples are taken and whether predictions are answered, told apart."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.http import Service, create_app, predict_check
from daemon.serving.slot import Served
from daemon.store.availability import Unavailable
from daemon.wiring.server import build_service
from engines import EngineFailedError
from tests.running import wait_for

CONFIG = "[model]\ninput_shape = [4]\nmax_classes = 3\nhidden = [8]\n[store]\ndirectory = '{}'\n"
SILENT = [sys.executable, "-c", "import sys; sys.stdin.read()"]


class Failing:
    """An engine whose device has failed."""

    def predict(self, x: object) -> None:
        raise EngineFailedError("the device is gone")

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("ready")
    (folder / "ffedge.toml").write_text(CONFIG.format(folder / "var"))
    return build_service(load_settings(folder / "ffedge.toml"), SILENT)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def statuses(client: TestClient) -> list[int]:
    """Of both, of ingest, of predict."""
    paths = ("", "?of=ingest", "?of=predict")
    return [client.get(f"/health/ready{path}").status_code for path in paths]


def test_a_daemon_that_takes_samples_and_predicts_is_ready(client: TestClient) -> None:
    assert statuses(client) == [200, 200, 200]
    assert client.get("/health/ready?of=learning").status_code == 422


def test_a_large_batch_is_predicted_in_parts_by_one_version(
    client: TestClient, service: Service
) -> None:
    well, done = service.slot.current, service.predicting.done
    rows = [[float(i), 1.0, 2.0, 3.0] for i in range(72)]
    body = {"samples": [{"x": row} for row in rows]}
    together = client.post("/predict", json=body).json()
    assert service.predicting.done == done + 3
    assert together["model_version"] == str(well.weights.version)
    for number in (0, 31, 32, 71):
        alone = client.post("/predict", json={"x": rows[number]}).json()
        assert together["predictions"][number]["goodness"] == alone["goodness"]


def test_without_its_store_it_is_ready_to_predict(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = property(lambda _: Unavailable("full", "injected"))
    monkeypatch.setattr(type(service.store), "refuses", refuses)
    assert statuses(client) == [503, 503, 200]
    ready = client.get("/health/ready").json()
    assert (ready["ready"], ready["ingest"]["cause"]) == (False, "full")
    assert ready["predict"] == {"ok": True, "why": None}


def test_with_an_engine_that_fails_it_is_ready_for_samples(
    client: TestClient, service: Service
) -> None:
    well = service.slot.current
    service.slot.swap(Served(well.weights, Failing()))
    try:
        assert statuses(client) == [503, 200, 503]
        ready = client.get("/health/ready").json()
        assert ready["predict"] == {"ok": False, "why": "the engine does not answer"}
        assert ready["ingest"]["ok"]
        assert "device is gone" not in client.get("/health/ready").text
    finally:
        service.slot.swap(well)
    assert statuses(client) == [200, 200, 200]


def test_with_a_predictor_that_is_stuck_it_is_ready_for_samples(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_check, "_DEADLINE_SECONDS", 0.2)
    go = threading.Event()
    service.predicting.submit(go.wait)
    try:
        assert statuses(client) == [503, 200, 503]
        why = client.get("/health/ready").json()["predict"]["why"]
        assert why == "no prediction was computed within 0.2 s"
        # Whoever asks meanwhile shares one question.
        assert service.predicting._work_queue.qsize() == 1
    finally:
        go.set()
    wait_for(lambda: statuses(client) == [200, 200, 200], "its recovery")


def test_where_no_learner_is_up_learning_is_not_said_to_run(
    client: TestClient, service: Service
) -> None:
    """This one has started and never reports."""
    assert service.supervisor.why_down is not None
    learning = client.get("/health/ready").json()["learning"]
    assert learning["state"] == "down"
    assert [reason["reason"] for reason in learning["reasons"]] == ["learner"]
    assert learning["text"].startswith("down: the learner ")
    assert client.get("/train").json()["learning"]["state"] == "down"
    assert client.post("/train/pause").json()["learning"]["state"] == "paused"
    silent = client.post("/train/pause", json={"reason": ""}).json()["learning"]["text"]
    assert silent == "paused: by an operator, until resumed"
    assert client.post("/train/resume").json()["learning"]["state"] == "down"
    service.supervisor._up, service.supervisor._paused = True, "learning pauses: the disk is full"
    learning = client.get("/train").json()["learning"]
    assert (learning["state"], learning["text"]) == (
        "paused",
        "paused: learning pauses: the disk is full",
    )
