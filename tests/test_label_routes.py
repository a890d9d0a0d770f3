"""Over HTTP: samples without a label, labels later, withdrawal, lists, keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.http import create_app
from daemon.wiring.server import build_service
from tests.test_api import CONFIG, SILENT, X

POST = {"x": X, "label": "cat", "source": "cam0"}
KEY = {"Idempotency-Key": "first request of cam0"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    path = tmp_path / "ffedge.toml"
    path.write_text(CONFIG.format(tmp_path / "var"))
    service = build_service(load_settings(path), SILENT)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def label(client: TestClient, name: str, **body: object) -> tuple[int, dict[str, object]]:
    answer = client.post(f"/samples/{name}/label", json=body)
    return answer.status_code, answer.json()


def test_a_sample_is_labelled_later_corrected_and_withdrawn(client: TestClient) -> None:
    assert client.post("/samples", json={"x": X}).json()["ids"] == ["s-1"]
    assert client.post("/samples", json={"x": X, "label": None}).json()["ids"] == ["s-2"]
    assert metric(client, "ffedge_samples_unlabelled") == 2
    first = {"id": "s-1", "label": 7, "previous_label": None, "seq": 3}
    assert label(client, "s-1", label=7) == (200, first)
    assert label(client, "s-1", label="7") == (200, first | {"previous_label": 7})
    status, body = label(client, "s-1", label=8)
    assert (status, body["code"], body["field"]) == (409, "label_conflict", "label")
    assert label(client, "s-1", label=8, replace=True)[1]["previous_label"] == 7
    for _ in range(2):
        answer = client.delete("/samples/s-1")
        assert (answer.status_code, answer.json()) == (200, {"id": "s-1", "seq": 4})
    assert client.get("/samples").json()["samples"] == [
        {"id": "s-2", "seq": 2, "label": None, "source": "", "ts": None}
    ]
    assert client.get("/samples/counts").json() == {
        "samples": 1,
        "last_seq": 4,
        "labels": [{"label": None, "samples": 1, "holdout": 0}],
        "sources": [{"source": "", "samples": 1}],
        "retired": {"relabelled": 2, "withdrawn": 1, "damaged": 0},
    }
    assert metric(client, 'ffedge_samples_retired{reason="relabelled"}') == 2
    assert metric(client, "ffedge_samples_stored") == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "bad_field"),
        (b'{"label": null}', "bad_field"),
        (b'{"label": true}', "bad_field"),
        (b'{"label": 1, "replace": 1}', "bad_field"),
        (b'{"label": 1, "secret": 1}', "bad_field"),
        (b"{", "bad_json"),
    ],
)
def test_a_bad_label_is_one_clear_error(client: TestClient, body: bytes, code: str) -> None:
    client.post("/samples", json={"x": X})
    headers = {"Content-Type": "application/json"}
    answer = client.post("/samples/s-1/label", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400 if code == "bad_json" else 422, code)
    assert "secret" not in answer.text
    assert client.get("/samples", params={"label": "null"}).json()["next_after_seq"] == 1


def test_what_nothing_is_known_of(client: TestClient) -> None:
    for name in ("s-1", "secret", "%00", "é", "x" * 500):
        for answer in (
            client.post(f"/samples/{name}/label", json={"label": 1}),
            client.delete(f"/samples/{name}"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_id")
            assert "secret" not in answer.text
    plain = client.post("/samples/s-1/label", content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415


def test_pages_and_filters(client: TestClient) -> None:
    for number in range(10):
        entry = {"x": [number, *X[1:]], "source": f"cam{number % 2}", "ts": number}
        entry |= {"label": ["cat", 7, None][number % 3]}
        assert client.post("/samples", json=entry).status_code == 201

    def seqs(**parameters: object) -> tuple[list[int], int]:
        body = client.get("/samples", params=parameters).json()
        return [entry["seq"] for entry in body["samples"]], body["next_after_seq"]

    assert seqs() == ([*range(1, 11)], 10)
    assert seqs(limit=4) == ([1, 2, 3, 4], 4)
    assert seqs(limit=4, after_seq=8) == ([9, 10], 10)
    assert seqs(after_seq=10) == ([], 10)
    assert seqs(label="cat") == ([1, 4, 7, 10], 10)
    assert seqs(label="7") == ([2, 5, 8], 8)
    assert seqs(label="null") == ([3, 6, 9], 9)
    assert seqs(label="dog") == ([], 0)
    assert seqs(source="cam1") == ([2, 4, 6, 8, 10], 10)
    assert seqs(source="cam1", label="cat") == ([4, 10], 10)
    assert seqs(source="cam1", label="null", after_seq=5) == ([6], 6)
    assert seqs(source="elsewhere") == ([], 0)
    (whole,) = client.get("/samples", params={"features": True, "limit": 1}).json()["samples"]
    assert whole == {
        "id": "s-1",
        "seq": 1,
        "label": "cat",
        "source": "cam0",
        "ts": "0",
        "dtype": "float32",
        "x": [0, *X[1:]],
    }
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_seq": -1}, {"features": "secret"}):
        answer = client.get("/samples", params=wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_field")
        assert "secret" not in answer.text


def test_a_page_with_features_is_bounded_in_bytes(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.store.sample_list.PAGE_BYTES", 3 * 24)
    client.post("/samples", json={"samples": [POST] * 8})
    body = client.get("/samples", params={"features": True}).json()
    assert (len(body["samples"]), body["next_after_seq"]) == (3, 3)
    assert len(client.get("/samples").json()["samples"]) == 8


def test_a_request_with_a_key_is_answered_once(client: TestClient) -> None:
    body = {"samples": [POST, {"x": [1]}, {"x": X}]}
    first = client.post("/samples", json=body, headers=KEY)
    assert (first.status_code, first.json()["accepted"]) == (201, 2)
    assert [entry["index"] for entry in first.json()["rejected"]] == [1]
    assert "Idempotent-Replayed" not in first.headers
    spaced = json.dumps(body, indent=3)
    headers = KEY | {"Content-Type": "application/json"}
    again = client.post("/samples", content=spaced, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    other = client.post("/samples", json={"samples": [POST]}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert metric(client, "ffedge_samples_stored") == 2
    received = 'ffedge_samples_received_total{result="%s",source="%s"}'
    assert metric(client, received % ("duplicate", "cam0")) == 1
    assert metric(client, received % ("accepted", "cam0")) == 1
    assert metric(client, received % ("rejected", "")) == 1


def test_what_was_refused_is_not_remembered(client: TestClient) -> None:
    client.post("/samples", json=POST | {"id": "x"})
    conflict = client.post("/samples", json=POST | {"id": "x", "label": "dog"}, headers=KEY)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "id_conflict")
    refused = client.post("/samples", json={"samples": [{"x": [1]}]}, headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (422, "all_refused")
    assert client.post("/samples", json=POST, headers=KEY).json()["accepted"] == 1


@pytest.mark.parametrize("key", [b"", b"\xe9", b"x" * 129, b"a\tb"])
def test_a_bad_key_is_refused(client: TestClient, key: bytes) -> None:
    headers: dict[bytes, bytes] = {b"Idempotency-Key": key}
    answer = client.post("/samples", json=POST, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")
    assert metric(client, "ffedge_samples_stored") == 0
