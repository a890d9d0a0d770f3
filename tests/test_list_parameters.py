"""A filter of `GET /samples` that would be passed over is refused."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.test_label_routes import client

__all__ = ["client"]


@pytest.mark.parametrize("query", ["lable=3", "label=3&label=4", "label=3&x=", "lable="])
def test_an_unknown_or_repeated_parameter_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/samples?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_field")
    assert "known are label, source, after_seq, limit, features" in answer.json()["error"]


def test_known_parameters_are_taken(client: TestClient) -> None:
    query = "label=3&source=a&after_seq=0&limit=5&features=true"
    assert client.get(f"/samples?{query}").status_code == 200


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/samples?label=ripe", "application/json", b'{"x": [1, 2, 3, 4]}'),
        ("/samples?label=ripe", "application/x-ndjson", b'{"x": [1, 2, 3, 4]}'),
        ("/predict?keep=true", "application/json", b'{"x": [1, 2, 3, 4]}'),
        ("/samples?label=a&label=b", "image/png", b""),
    ],
)
def test_what_the_body_does_not_look_for_in_the_url_is_refused(
    client: TestClient, path: str, kind: str, body: bytes
) -> None:
    before = client.get("/samples/counts").json()["samples"]
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_field")
    assert "parameter" in answer.json()["error"]
    assert client.get("/samples/counts").json()["samples"] == before
