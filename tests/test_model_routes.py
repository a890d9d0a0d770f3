"""`/models` over HTTP: versions, their files, rollback and activation, and each error."""

from __future__ import annotations

import json
import sys

import pytest
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.http import create_app
from daemon.serving import versions as versions_module
from daemon.serving.gate import Scores
from daemon.wiring.server import build_service
from engines import weights_digest, weights_from_bytes
from tests.daemon_fixtures import SPEC, network, put
from tests.running import wait_for
from tests.test_rollback import BETTER

GOOD = Scores(n=100, incumbent_correct=80, best_correct=80, candidate_correct=90)
SILENT = [sys.executable, "-c", "import sys; sys.stdin.read()"]
CONFIG = (
    "[model]\ninput_shape = [6]\nmax_classes = 3\nhidden = [8, 8]\n"
    "[gate]\nkeep_versions = 9\n[store]\ndirectory = {}\n"
)


@pytest.fixture
def service(tmp_path):
    (tmp_path / "ffedge.toml").write_text(CONFIG.format(json.dumps(str(tmp_path / "var"))))
    service = build_service(load_settings(tmp_path / "ffedge.toml"), SILENT)
    assert service.spec == SPEC
    return service


@pytest.fixture
def client(service):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        for number in (2, 3, 4):
            weights = put(service.versions, network(number))
            promotion = service.supervisor._promotion
            assert promotion.consider(number, weights_digest(weights), GOOD).accepted
            if number < 4:
                service.swaps.probed(number, BETTER, 200)
        yield client


def error(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_versions_with_role_and_state(client):
    body = client.get("/models").json()
    assert [(v["version"], v["role"], v["state"]) for v in body["versions"]] == [
        ("4", "active", "pending"),
        ("3", "previous", "good"),
        ("2", None, "good"),
        ("1", None, "good"),
    ]
    assert body["changes"] == []
    assert body["best"] == "4"
    asked = {"version": "4", "against": "3", "samples": 200}
    counts = {"n": 0, "correct": 0, "previous_correct": 0, "lost": 0}
    assert body["probation"] == [asked | counts]
    assert client.get("/models/mlp/versions/3").json() == body["versions"][1]
    assert body["versions"][1]["gate"]["decision"] == "accepted"


def test_the_model_can_be_got_out(client, service):
    sha256 = client.get("/models").json()["versions"][0]["sha256"]
    answer = client.get("/models/mlp/versions/4/weights")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert weights_digest(weights_from_bytes(answer.content)) == sha256
    assert sha256 == weights_digest(service.slot.current.weights)
    path = service.versions.path(2)
    path.write_bytes(answer.content)
    assert error(client.get("/models/mlp/versions/2/weights")) == (503, "storage")
    path.unlink()
    assert error(client.get("/models/mlp/versions/2/weights")) == (404, "unknown_version")


def test_rollback_and_back_again(client):
    answer = client.post("/models/mlp/rollback", json={"reason": "drift on cam2"})
    body = answer.json()
    assert 0 <= body.pop("swap_seconds") < 0.01
    assert body.pop("left_out") == {"after_seq": 0, "through_seq": 0}
    assert body.pop("durable") is True
    assert body == {"model": "mlp", "active": "3", "previous": "2", "reason": "drift on cam2"}
    predicted = client.post("/predict", json={"x": [1] * 6}).json()
    assert predicted["model_version"] == "3"
    assert client.post("/models/mlp/rollback", json={"to": "1"}).json()["active"] == "1"
    assert error(client.post("/models/mlp/rollback")) == (409, "no_previous")
    assert error(client.post("/models/mlp/rollback", json={"to": 3})) == (409, "no_previous")
    body = client.post("/models/mlp/activate", json={"version": 3, "reason": "fine"}).json()
    assert (body["active"], body["previous"], body["reason"]) == ("3", "1", "fine")
    models = client.get("/models").json()
    assert [(c["result"], c["from"], c["to"], c["by"]) for c in models["changes"]] == [
        ("activated", "1", "3", "operator"),
        ("rolled_back", "3", "1", "operator"),
        ("rolled_back", "4", "3", "operator"),
    ]
    assert {v["version"]: v["state"] for v in models["versions"]} == {
        "4": "bad",
        "3": "pending",
        "2": "bad",
        "1": "good",
    }


def test_a_rollback_says_what_is_left_out_and_whether_the_disk_took_it(
    client, service, monkeypatch, caplog
):
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    third = service.versions.manifest._with(3, last_seq=1020)
    service.versions.change(third)
    service.store.learned(3072)
    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    body = client.post("/models/mlp/rollback").json()
    assert (body["active"], body["durable"]) == ("3", False)
    assert body["left_out"] == {"after_seq": 1020, "through_seq": 3072}
    path = service.versions.path(3).with_name("manifest.json")
    assert json.loads(path.read_bytes())["active"] == 4
    same = client.post("/models/mlp/activate", json={"version": "3"}).json()
    assert same["durable"] is False
    for _ in range(3):
        service.versions.write_again()
    assert caplog.text.count("manifest cannot be written") == 1
    monkeypatch.undo()
    wait_for(lambda: service.versions.durable, "the manifest on disk")
    assert json.loads(path.read_bytes())["active"] == 3
    assert client.post("/models/mlp/rollback").json()["durable"] is True


@pytest.mark.parametrize("version", ["9", "0", "-1", "x", "²", "9" * 18, "9" * 300])
def test_a_version_that_is_not_kept(client, version):
    for path in ("", "/weights"):
        found = client.get(f"/models/mlp/versions/{version}{path}")
        assert error(found) == (404, "unknown_version")
    wanted = 422 if len(version) > 20 else 404
    rollback = client.post("/models/mlp/rollback", json={"to": version})
    activate = client.post("/models/mlp/activate", json={"version": version})
    assert rollback.status_code == activate.status_code == wanted
    assert version not in rollback.text or len(version) == 1


def test_another_model(client):
    for answer in (
        client.get("/models/resnet8/versions/1"),
        client.get("/models/resnet8/versions/1/weights"),
        client.post("/models/resnet8/rollback"),
        client.post("/models/resnet8/activate", json={"version": "1"}),
    ):
        assert error(answer) == (404, "unknown_model")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"to": []}', b'{"to": "1", "more": 1}', b'{"reason": "' + b"x" * 201 + b'"}'],
)
def test_a_body_that_is_none_changes_nothing(client, service, body):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/models/mlp/rollback", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert client.post("/models/mlp/activate").status_code == 422
    assert service.slot.current.weights.version == 4
