"""The daemon that serves through TensorRT: it answers, swaps, and never loads torch."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.errors import ConfigError
from daemon.http import create_app
from daemon.serving.gate import Scores
from daemon.serving.promotion import Promotion
from daemon.telemetry import Telemetry
from daemon.wiring.server import build_service
from engines import EngineFailedError, EngineUnavailableError, open_predict_engine, weights_digest
from engines.registry import Loaded
from tests.daemon_fixtures import daemon_parts, network, put
from tests.running import RunningDaemon, wait_for

ROOT = Path(__file__).parents[1]
SITE = ROOT / "tests" / "fake_tensorrt" / "site"
FEATURES = 16
GOOD = Scores(n=100, incumbent_correct=80, best_correct=80, candidate_correct=90)


@pytest.fixture
def board(monkeypatch):
    """Processes that are started find TensorRT 10.3, pycuda and a GPU."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), str(ROOT)]))
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "10.3")
    return monkeypatch


def loads_torch(daemon: RunningDaemon) -> bool:
    return "libtorch" in Path(f"/proc/{daemon.process.pid}/maps").read_text()


def logged(daemon: RunningDaemon, message: str) -> list[dict]:
    lines = [line for line in daemon.log.read_text().splitlines() if f'"{message}"' in line]
    return [json.loads(line) for line in lines]


def teach(daemon: RunningDaemon) -> None:
    noise = random.Random(1)
    labels = [noise.randrange(2) for _ in range(200)]
    samples = [
        {"x": [8.0 * (i % 2 == y) + noise.random() for i in range(FEATURES)], "label": y}
        for y in labels
    ]
    assert daemon.client.post("/samples", json={"samples": samples}).status_code == 201
    wait_for(lambda: daemon.metric("ffedge_model_version") not in (None, 1.0), "a swap", 90)
    wait_for(daemon.settled, "learning", 90)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_server_on_tensorrt_learns_swaps_and_restarts_without_torch(board, tmp_path):
    board.setenv("FFEDGE_SERVER__ENGINE", "tensorrt")
    daemon = RunningDaemon(tmp_path, FEATURES)
    with daemon:
        first = daemon.client.post("/predict", json={"x": [0.0] * FEATURES}).json()
        assert (first["model_version"], first["label"]) == ("1", None)
        teach(daemon)
        answer = daemon.client.post("/predict", json={"x": [8.0, 0.0] * 8}).json()
        assert answer["label"] == 0
        assert int(answer["model_version"]) > 1
        assert daemon.metric('ffedge_build_info{engine="tensorrt",version="0.1.0"}') == 1
        assert not loads_torch(daemon)
        assert logged(daemon, "engine chosen")[-1]["engine"] == "tensorrt"
        assert len(logged(daemon, "TensorRT plan built")) == 1
        gates = [entry["gate"] for entry in daemon.client.get("/models").json()["refused"]]
        assert "engine" not in {gate["reason"] for gate in gates}
    with daemon:
        again = daemon.client.post("/predict", json={"x": [8.0, 0.0] * 8}).json()
        assert again["goodness"] == answer["goodness"]
        assert not loads_torch(daemon)
        assert len(logged(daemon, "TensorRT plan built")) == 1  # it was kept


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_version_that_tensorrt_answers_wrongly_is_served_by_torch(board, tmp_path):
    """Untrained biases are zero, so the first version passes though they are dropped."""
    board.setenv("FAKE_TENSORRT_DROPS_BIAS", "1")
    with RunningDaemon(tmp_path, FEATURES) as daemon:
        assert daemon.metric('ffedge_build_info{engine="tensorrt",version="0.1.0"}') == 1
        assert not loads_torch(daemon)
        teach(daemon)
        assert daemon.metric('ffedge_build_info{engine="torch",version="0.1.0"}') == 1
        assert daemon.metric('ffedge_build_info{engine="tensorrt",version="0.1.0"}') is None
        (changed,) = logged(daemon, "engine changed")
        assert "tensorrt: TensorRT differs from the learner" in changed["reason"]
        assert loads_torch(daemon)


def test_asked_for_by_name_and_not_there_the_daemon_does_not_start(tmp_path):
    daemon = RunningDaemon(tmp_path, FEATURES)
    command = [sys.executable, "-m", "daemon", "serve", "--config", str(daemon.config)]
    environment = {**os.environ, "FFEDGE_SERVER__ENGINE": "tensorrt"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ffedge: server.engine or server.device: no engine opened: tensorrt: ")


# --- what the service makes of an engine that cannot ----------------------------------------------


class Cannot:
    """An engine that opens no version but the first."""

    name, reason = "cannot", "a test"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def open(self, weights):
        raise self._error


@pytest.mark.parametrize("kind", [EngineUnavailableError, EngineFailedError])
def test_a_candidate_that_the_engine_cannot_serve_is_refused(tmp_path, kind):
    with daemon_parts(tmp_path) as parts:
        candidate = put(parts.versions, network(2))
        promotion = Promotion(
            parts.versions,
            parts.swaps,
            parts.slot,
            parts.store,
            Cannot(kind("short of memory")),
            parts.promotion._settings,
            Telemetry(CollectorRegistry()),
        )
        decision = promotion.consider(2, weights_digest(candidate), GOOD)
        assert (decision.accepted, decision.reason) == (False, "engine")
        assert parts.serving == 1
        assert parts.versions.manifest.last == 2
        assert not parts.versions.path(2).exists()
        again = put(parts.versions, network(3))
        assert parts.promotion.consider(3, weights_digest(again), GOOD).accepted


def test_an_engine_that_fails_is_a_503_and_the_next_request_is_answered(tmp_path):
    config = tmp_path / "ffedge.toml"
    config.write_text(
        "[model]\ninput_shape = [2]\nmax_classes = 2\nhidden = [4]\n"
        f"[store]\ndirectory = {json.dumps(str(tmp_path / 'var'))}\n"
    )
    service = build_service(load_settings(config), [sys.executable, "-c", "input()"])
    served = service.slot.current
    faults = [EngineFailedError("CUDA: unspecified launch failure")]
    predict = served.engine.predict

    def failing(x):
        if faults:
            raise faults.pop()
        return predict(x)

    served.engine.predict = failing
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        failed = client.post("/predict", json={"x": [1, 2]})
        assert failed.status_code == 503
        assert failed.headers["Retry-After"] == "1"
        assert failed.json() == {"error": "the engine did not answer: try again", "code": "engine"}
        assert service.slot.failures == 1  # too many in a row, and the watchdog goes unfed
        assert client.post("/predict", json={"x": [1, 2]}).status_code == 200
        assert service.slot.failures == 0


def test_a_first_version_that_no_engine_serves_is_a_configuration_error(tmp_path, monkeypatch):
    config = tmp_path / "ffedge.toml"
    config.write_text(
        "[model]\ninput_shape = [2]\nmax_classes = 2\nhidden = [4]\n"
        f"[store]\ndirectory = {json.dumps(str(tmp_path / 'var'))}\n"
    )
    engine = open_predict_engine("torch")
    cannot = Loaded(Cannot(EngineUnavailableError("no")).open, "nowhere")
    monkeypatch.setattr(engine, "_loaded", cannot)
    monkeypatch.setattr("daemon.wiring.server.open_predict_engine", lambda *a, **k: engine)
    with pytest.raises(ConfigError, match=r"server\.engine: no engine opened"):
        build_service(load_settings(config), [sys.executable, "-c", "input()"])
