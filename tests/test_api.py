"""The HTTP surface on a real service: bodies, errors, and what an answer promises."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from daemon.config import Settings, load_settings
from daemon.errors import ConfigError
from daemon.http import Service, create_app
from daemon.supervision.supervisor import NOTED
from daemon.wiring.server import build_service
from tests.daemon_fixtures import WAIT_SECONDS

# A learner that reports nothing and ends with its input: these tests are about the server.
SILENT = [sys.executable, "-c", "import sys; sys.stdin.read()"]
CONFIG = (
    '[model]\ninput_shape = [2, 3]\nmax_classes = 3\nhidden = [8, 8]\n[store]\ndirectory = "{}"\n'
)
X = [0, 1, 2, 3, 4, 5.5]


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("api")
    (folder / "ffedge.toml").write_text(CONFIG.format(folder / "var"))
    return load_settings(folder / "ffedge.toml")


@pytest.fixture(scope="module")
def service(configured: Settings) -> Service:
    return build_service(configured, SILENT)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def stored(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(
        float(line.split()[1]) for line in lines if line.startswith("ffedge_samples_stored")
    )


def test_one_sample(client: TestClient) -> None:
    answer = client.post("/samples", json={"x": X, "label": "cat", "id": "one", "source": "cam0"})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["accepted"], body["duplicates"], body["rejected"]) == (1, 0, [])
    assert body["ids"] == ["one"]
    assert body["first_seq"] == body["last_seq"]
    again = client.post("/samples", json={"x": X, "label": "cat", "id": "one", "source": "cam0"})
    assert (again.json()["accepted"], again.json()["duplicates"]) == (0, 1)
    other = client.post("/samples", json={"x": X, "label": "dog", "id": "one"})
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


def test_nested_and_flat_features_are_the_same_sample(client: TestClient) -> None:
    flat = {"x": X, "label": "cat", "id": "flat"}
    nested = flat | {"x": [X[:3], X[3:]]}
    assert client.post("/samples", json=flat).json()["accepted"] == 1
    assert client.post("/samples", json=nested).json()["duplicates"] == 1


def test_a_batch_accepts_what_is_good_and_names_what_is_not(client: TestClient) -> None:
    samples = [{"x": X, "label": "cat"}, {"x": [1], "label": "cat"}, {"x": X, "label": "dog"}]
    answer = client.post("/samples", json={"samples": samples, "source": "cam1"})
    assert answer.status_code == 201
    body = answer.json()
    assert body["accepted"] == 2
    assert body["ids"][1] is None
    assert [(r["index"], r["code"]) for r in body["rejected"]] == [(1, "bad_shape")]
    before = stored(client)
    refused = client.post("/samples", json={"samples": [{"x": [1], "label": "cat"}]})
    assert (refused.status_code, refused.json()["code"]) == (422, "all_refused")
    assert refused.json()["rejected"][0]["index"] == 0
    assert stored(client) == before


def test_ndjson(client: TestClient) -> None:
    lines = [
        json.dumps({"x": X, "label": "cat"}),
        "",
        "{broken",
        json.dumps({"x": X, "label": "dog"}),
    ]
    headers = {"Content-Type": "application/x-ndjson"}
    answer = client.post("/samples", content="\n".join(lines), headers=headers)
    assert answer.status_code == 201
    assert answer.json()["accepted"] == 2
    assert [(r["index"], r["code"]) for r in answer.json()["rejected"]] == [(1, "bad_json")]


def test_a_class_too_many_is_refused(client: TestClient) -> None:
    for label in ("cat", "dog", 7):
        assert client.post("/samples", json={"x": X, "label": label}).status_code == 201
    answer = client.post("/samples", json={"x": X, "label": "one too many"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_label")
    assert "max_classes" in answer.json()["error"]
    # 7 and "7" are one class.
    assert client.post("/samples", json={"x": X, "label": "7"}).status_code == 201


BAD = [
    (b"", 400, "bad_json"),
    (b"{", 400, "bad_json"),
    (b"[" * 50_000, 422, "bad_field"),
    (b'{"x": [NaN,1,2,3,4,5], "label": 1}', 400, "bad_json"),
    (b'{"x": [1,2,3,4,5,6], "label": "\xff"}', 400, "bad_json"),
    (b'{"x": [1e999,1,2,3,4,5], "label": 1}', 422, "not_finite"),
    (b'{"x": [1e39,1,2,3,4,5], "label": 1}', 422, "not_finite"),
    (b'{"x": [1,2,3], "label": 1}', 422, "bad_shape"),
    (b'{"x": [[1,2],[3,4,5,6]], "label": 1}', 422, "bad_shape"),
    (b'{"x": [[[[1]]]], "label": 1}', 422, "bad_shape"),
    (b'{"x": "secret", "label": 1}', 422, "bad_field"),
    (b'{"x": ["secret",1,2,3,4,5], "label": 1}', 422, "bad_field"),
    (b'{"x": [true,1,2,3,4,5], "label": 1}', 422, "bad_field"),
    (b'{"label": 1}', 422, "bad_field"),
    (b'{"x": [1,2,3,4,5,6], "label": true}', 422, "bad_field"),
    (b'{"x": [1,2,3,4,5,6], "label": ' + b"9" * 4000 + b"}", 422, "bad_field"),
    (b'{"x": [1,2,3,4,5,6], "label": 1, "secret": 2}', 422, "bad_field"),
    (b'{"x": [1,2,3,4,5,6], "label": 1, "id": "s-1"}', 422, "bad_field"),
    (b'{"samples": []}', 422, "bad_field"),
    (b'{"samples": 3}', 422, "bad_field"),
    (b'{"samples": [' + b",".join([b'{"x":[1],"label":1}'] * 257) + b"]}", 413, "too_large"),
    (b"[1]", 422, "bad_field"),
    (b" " * (1 << 20) + b"{}", 413, "too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD)
def test_bad_input_gets_one_clear_error_and_changes_nothing(
    client: TestClient, body: bytes, status: int, code: str
) -> None:
    before = stored(client)
    answer = client.post("/samples", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.json()["error"], str)
    assert "secret" not in answer.text
    assert stored(client) == before


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@pytest.mark.parametrize("route", ["/samples", "/predict", "/train"])
def test_no_body_makes_a_server_error(client: TestClient, route: str, body: bytes) -> None:
    answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500 or answer.json()["code"] == "not_ready"


def test_only_json_is_read(client: TestClient) -> None:
    plain = client.post("/samples", content=b"{}", headers={"Content-Type": "text/plain"})
    assert (plain.status_code, plain.json()["code"]) == (415, "content_type")
    packed = client.post("/predict", content=b"{}", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415


def test_predict_names_its_version(client: TestClient) -> None:
    one = client.post("/predict", json={"x": X})
    assert one.status_code == 200
    answer = one.json()
    assert answer.pop("id").startswith("p-")
    assert answer == {
        "model": "mlp",
        "model_version": "1",
        "label": None,
        "goodness": [],
        "margin": None,
        "kept": False,
    }
    many = client.post("/predict", json={"samples": [{"x": X}, {"x": X}]}).json()
    assert len(many["predictions"]) == 2
    bad = client.post("/predict", json={"samples": [{"x": X}, {"x": [1]}]})
    assert (bad.status_code, bad.json()["field"]) == (422, "samples[1].x")


def test_models_lists_the_version_that_serves(client: TestClient) -> None:
    body = client.get("/models").json()
    assert (body["model"], body["active"], body["previous"]) == ("mlp", "1", None)
    assert [(v["version"], v["role"]) for v in body["versions"]] == [("1", "active")]
    assert body["refused"] == []


def test_train_says_when_it_cannot(client: TestClient) -> None:
    answer = client.post("/train", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_samples")
    assert "the first 128 samples" in answer.json()["error"]
    x = [{"x": [n, *X[1:]], "label": "cat"} for n in range(200)]
    assert client.post("/samples", json={"samples": x}).json()["accepted"] == 200
    answer = client.post("/train", json={})  # this service's learner never reports
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.headers["Retry-After"]
    assert client.get("/train").json()["jobs"] == []
    missing = client.get("/train/t-99")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_id")
    assert client.post("/train", json={"max_steps": 0}).status_code == 422
    assert client.post("/train/resume", json={"seconds": 5}).status_code == 422
    assert client.post("/train/resume").json()["durable"]


def test_what_happened_to_the_network_is_listed(client: TestClient, service: Service) -> None:
    assert client.get("/train/events").json() == {"events": []}
    happened = [("drift", 40, "10:00"), ("drift", 90, "2036"), ("retreated", 50, "10:02")]
    events = [{"kind": k, "text": "", "seq": seq, "at": at} for k, seq, at in happened]
    for event in events:
        service.store.record(f"{NOTED}_{event['kind']}", event["seq"], event).result(WAIT_SECONDS)
    assert client.get("/train/events?limit=2").json() == {"events": [events[2], events[1]]}
    again = events[0] | {"at": "1970"}  # the clock is wrong: the order is that of recording
    service.store.record(f"{NOTED}_drift", 40, again).result(WAIT_SECONDS)
    assert client.get("/train/events?limit=2").json() == {"events": [again, events[2]]}
    assert client.get("/train/events?limit=0").status_code == 422


def test_health(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"live": True}
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    status = ready.json()
    assert set(status.pop("power")) == {"up", "provider", "refused", "reader"}
    assert status.pop("learning")["state"]
    assert status == {
        "ready": True,
        "live": True,
        "ingest": {"ok": True, "why": None, "cause": None},
        "predict": {"ok": True, "why": None},
        "samples_lost": 0,
        "removed": None,
        "learner": False,
        "learning_paused": None,
    }


def test_unknown_routes_and_methods_have_the_same_error_shape(client: TestClient) -> None:
    assert client.get("/nothing").json()["code"] == "unknown_route"
    assert client.get("/predict").json()["code"] == "method"
    bad = client.get("/train", params={"limit": "many"})
    assert bad.status_code == 422
    assert bad.json()["code"] == "bad_field"
    assert "many" not in bad.text


def test_metrics_count_requests_by_route_template(client: TestClient) -> None:
    client.get("/train/t-12345")
    text = client.get("/metrics").text
    assert 'ffedge_http_requests_total{code="404",method="GET",route="/train/{job}"}' in text
    assert "t-12345" not in text
    assert 'ffedge_samples_received_total{result="accepted",source="cam0"}' in text


def write_config(folder: Path, shape: list[int], classes: int, hidden: list[int]) -> Settings:
    text = (
        CONFIG.format(folder / "var").replace("[2, 3]", str(shape)).replace("[8, 8]", str(hidden))
    )
    path = folder / "ffedge.toml"
    path.write_text(text.replace("max_classes = 3", f"max_classes = {classes}"))
    return load_settings(path)


def test_another_network_begins_again_from_the_stored_samples(tmp_path: Path) -> None:
    first = build_service(write_config(tmp_path, [6], 2, [8, 8]), SILENT)
    with TestClient(create_app(first)) as client:
        for label in ("a", "b"):
            assert client.post("/samples", json={"x": X, "label": label}).status_code == 201
        assert client.post("/samples", json={"x": X, "label": "c"}).status_code == 422
    again = build_service(write_config(tmp_path, [6], 3, [9, 9]), SILENT)
    with TestClient(create_app(again)) as client:
        assert client.post("/samples", json={"x": X, "label": "c"}).status_code == 201
        assert stored(client) == 3
        assert client.post("/predict", json={"x": X}).json()["model_version"] == "2"
    for shape, classes in (([7], 3), ([6], 2)):
        with pytest.raises(ConfigError, match=r"choose another store\.directory"):
            build_service(write_config(tmp_path, shape, classes, [9, 9]), SILENT)
