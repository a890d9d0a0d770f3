"""A prediction's features stay for a label that comes later, as long as there is room."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.errors import UnknownIdError
from daemon.http import create_app
from daemon.ingest.kept_predictions import (
    KeptPrediction,
    KeptPredictions,
    new_prediction_id,
)
from daemon.ingest.sample import check_id
from daemon.store.schema import DATABASE_NAME
from daemon.wiring.server import build_service
from tests import sample_forms as forms

SILENT = [sys.executable, "-c", "import sys; sys.stdin.read()"]
X = [1, 2, 3, 4.5]


def write_config(folder: Path, more: str = "") -> Path:
    config = folder / "ffedge.toml"
    config.write_text(
        "[model]\ninput_shape = [4]\nmax_classes = 3\nhidden = [8]\n"
        f'[store]\ndirectory = "{folder}"\n{more}'
    )
    return config


def start(folder: Path, more: str = "") -> TestClient:
    return TestClient(create_app(build_service(load_settings(write_config(folder, more)), SILENT)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with start(folder) as client:
        yield client


def label(client: TestClient, prediction: str, label: Any = 2, **more: Any) -> Any:
    body = {"inference_id": prediction, "label": label} | more
    return client.post("/samples", json=body)


def correct(client: TestClient, sample: str, label: Any) -> None:
    body = {"label": label, "replace": True}
    assert client.post(f"/samples/{sample}/label", json=body).status_code == 200


def kept(client: TestClient) -> str:
    answer = client.post("/predict", json={"x": X, "keep": True}).json()
    assert answer["kept"] is True
    return answer["id"]


def test_a_label_that_comes_later_makes_a_sample(client: TestClient, folder: Path) -> None:
    prediction = kept(client)
    answer = label(client, prediction, 2, source="person")
    assert (answer.status_code, answer.json()["ids"]) == (201, [prediction])
    other = client.post("/samples", json={"x": X, "label": 2, "id": "same"})
    assert other.status_code == 201
    query = "SELECT features, dtype, name FROM samples NATURAL JOIN classes WHERE id IN (?, ?)"
    with closing(sqlite3.connect(folder / DATABASE_NAME)) as connection:
        first, second = connection.execute(query, (prediction, "same"))
    assert first == second


def test_a_label_again_is_a_duplicate_and_another_a_conflict(client: TestClient) -> None:
    prediction = kept(client)
    assert label(client, prediction).json()["accepted"] == 1
    again = label(client, prediction)
    assert again.status_code == 200
    assert (again.json()["accepted"], again.json()["duplicates"]) == (0, 1)
    other = label(client, prediction, 1)
    assert (other.status_code, other.json()["code"]) == (409, "label_conflict")
    batch = {"samples": [{"inference_id": prediction, "label": 1}, {"x": X, "label": 1}]}
    (rejected,) = client.post("/samples", json=batch).json()["rejected"]
    assert (rejected["index"], rejected["code"]) == (0, "label_conflict")


def test_a_label_that_was_corrected_is_no_longer_the_one_it_has(client: TestClient) -> None:
    """3, corrected to dog, and then 3 again: somebody means it, and is not told that it is so."""
    prediction = kept(client)
    assert label(client, prediction, 2).status_code == 201
    correct(client, prediction, "dog")
    assert label(client, prediction, "dog").json()["duplicates"] == 1
    for key in ({}, {"Idempotency-Key": "later"}):
        body = {"inference_id": prediction, "label": 2}
        again = client.post("/samples", json=body, headers=key)
        assert (again.status_code, again.json()["code"]) == (409, "label_conflict")
        assert "has another label" in again.json()["error"]
    correct(client, prediction, 2)
    assert label(client, prediction, 2).json()["duplicates"] == 1


def test_after_a_withdrawal_no_label_is_taken_and_that_is_what_is_said(client: TestClient) -> None:
    prediction = kept(client)
    assert label(client, prediction).status_code == 201
    assert client.delete(f"/samples/{prediction}").status_code == 200
    for value in (2, 1):
        answer = label(client, prediction, value)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_id")
        assert "withdrawn" in answer.json()["error"]
        assert answer.json()["field"] == "inference_id"


def test_a_prediction_that_is_not_kept_is_unknown_and_says_why(client: TestClient) -> None:
    plain = client.post("/predict", json={"x": X}).json()
    assert plain["kept"] is False
    for prediction in (plain["id"], "p-never", "", "x" * 5000):
        answer = label(client, prediction)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_id")
        assert '"keep": true' in answer.json()["error"]


def test_a_label_brings_nothing_that_the_prediction_has(client: TestClient) -> None:
    prediction = kept(client)
    for more in ({"x": X}, {"id": "own"}, {"shape": [4]}, {"inputs": []}, {"x_b64": ""}):
        answer = label(client, prediction, 2, **more)
        assert (answer.status_code, answer.json()["field"]) == (422, next(iter(more)))
    missing = client.post("/samples", json={"inference_id": prediction})
    assert (missing.status_code, missing.json()["field"]) == (422, "label")


def test_each_prediction_of_a_batch_has_its_own_id(client: TestClient) -> None:
    part = forms.tensor("x", [2, 4], "UINT8", bytes(range(8)))
    sent = forms.binary([part], {"keep": True})
    answer = client.post("/predict", content=sent.body, headers=sent.all_headers).json()
    first, second = (one["id"] for one in answer["predictions"])
    assert first != second
    assert label(client, second).status_code == 201
    body = {"samples": [{"x": X}, {"x": X}], "keep": True}
    many = client.post("/predict", json=body).json()["predictions"]
    assert [label(client, one["id"]).status_code for one in many] == [201, 201]
    bad = client.post("/predict", json={"x": X, "keep": 1})
    assert (bad.status_code, bad.json()["field"]) == (422, "keep")


def test_predictions_can_be_kept_by_default(tmp_path: Path) -> None:
    with start(tmp_path, "[server]\nkeep_predictions = true\n") as client:
        assert label(client, client.post("/predict", json={"x": X}).json()["id"]).status_code == 201
        spoken = client.post("/predict", json={"x": X, "keep": False}).json()
        assert (spoken["kept"], label(client, spoken["id"]).status_code) == (False, 404)


def test_a_label_sent_again_is_known_after_a_restart(tmp_path: Path) -> None:
    with start(tmp_path) as client:
        once, corrected, withdrawn, never = (kept(client) for _ in range(4))
        for prediction in (once, corrected, withdrawn):
            assert label(client, prediction).status_code == 201
        correct(client, corrected, 1)
        assert client.delete(f"/samples/{withdrawn}").status_code == 200
    with start(tmp_path) as client:
        for prediction, now in ((once, 2), (corrected, 1)):
            again = label(client, prediction, now)
            assert (again.status_code, again.json()["duplicates"]) == (200, 1)
            other = label(client, prediction, 0)
            assert (other.status_code, other.json()["code"]) == (409, "label_conflict")
        assert [label(client, one).status_code for one in (withdrawn, never)] == [404, 404]
        # Only a prediction's id stands for features that are stored.
        own = client.post("/samples", json={"x": X, "label": 2, "id": "own"})
        assert (own.status_code, label(client, "own").status_code) == (201, 404)


def test_a_conflict_has_one_name_with_a_key_and_without(client: TestClient) -> None:
    prediction = kept(client)
    assert label(client, prediction).status_code == 201
    body = {"samples": [{"inference_id": prediction, "label": 1}, {"x": X, "label": 1}]}
    for headers in ({}, {"Idempotency-Key": "k"}, {"Idempotency-Key": "k"}):
        (rejected,) = client.post("/samples", json=body, headers=headers).json()["rejected"]
        assert (rejected["code"], rejected["field"]) == ("label_conflict", "label")


def test_the_oldest_make_room() -> None:
    by_count = KeptPredictions(by_default=False, limit=3)
    by_bytes = KeptPredictions(by_default=False, limit_bytes=30)
    for predictions in (by_count, by_bytes):
        for name in "abcd":
            predictions.keep(name, KeptPrediction(bytes(10), "uint8", 3, 1))
        assert [name for name in "abcd" if name in predictions] == ["b", "c", "d"]
        with pytest.raises(UnknownIdError):
            predictions.find("a")
        assert predictions.find("d") == (bytes(10), "uint8")
    by_bytes.keep("large", KeptPrediction(bytes(25), "uint8", 3, 1))
    assert [name for name in ("c", "d", "large") if name in by_bytes] == ["large"]
    by_bytes.keep("too large", KeptPrediction(bytes(31), "uint8", 3, 1))
    assert "too large" not in by_bytes


def test_ids_are_fit_for_a_sample_and_never_the_same() -> None:
    ids = {new_prediction_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(check_id(one) for one in ids)
