"""Every form of `POST /samples` says the same: equal samples become equal rows."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from daemon.config import load_settings
from daemon.http import create_app
from daemon.ingest.forms import SAMPLE_TYPES
from daemon.store.schema import DATABASE_NAME
from daemon.wiring.server import build_service
from tests import sample_forms as forms
from tests.sample_forms import Given, Sent

SILENT = [sys.executable, "-c", "import sys; sys.stdin.read()"]
SHAPES = {"vector": [6], "window": [2, 3], "grey": [1, 4, 5], "colour": [3, 2, 4]}

# Each writes several samples in one request ...
MANY: dict[str, Callable[[Given], Sent]] = {
    "JSON": forms.json_batch,
    "JSON, flat": lambda given: forms.json_batch(given, forms.flat_numbers),
    "JSON, base64": lambda given: forms.json_batch(given, forms.base64_bytes),
    "JSON, inputs": lambda given: forms.json_batch(given, forms.infer_input),
    "NDJSON": forms.lines,
    "MessagePack": forms.message_pack,
    "MessagePack, bytes": lambda given: forms.message_pack(given, forms.raw_bytes),
    "MessagePack, inputs": lambda given: forms.message_pack(given, forms.infer_input),
    "tensors": forms.tensors,
}
PICTURES = {"form": forms.picture_form}
# ... or one.
ONE: dict[str, Callable[[Given], Sent]] = {
    "JSON": forms.json_one,
    "JSON, base64": lambda given: forms.json_one(given, forms.base64_bytes),
}


@pytest.fixture(scope="module", params=SHAPES)
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestClient, Path, list[int]]]:
    folder, shape = tmp_path_factory.mktemp("forms"), SHAPES[request.param]
    config = folder / "ffedge.toml"
    config.write_text(
        f"[model]\ninput_shape = {shape}\nmax_classes = 10\nhidden = [16]\n"
        f'[store]\ndirectory = "{folder}"\n'
    )
    service = build_service(load_settings(config), SILENT)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client, folder, shape


def post(client: TestClient, sent: Sent, route: str = "/samples") -> Any:
    return client.post(route, content=sent.body, headers=sent.all_headers, params=sent.query)


def stored(folder: Path, ids: list[str]) -> list[tuple[Any, ...]]:
    """What the rows of these ids hold, in their order; features, label and source."""
    query = "SELECT features, dtype, name, source FROM samples NATURAL JOIN classes WHERE id = ?"
    with closing(sqlite3.connect(folder / DATABASE_NAME)) as connection:
        return [connection.execute(query, (one,)).fetchone() for one in ids]


def given(name: str, shape: list[int], dtype: str, labels: list[Any]) -> Given:
    rng = np.random.default_rng(5)
    shape = [len(labels), *shape]
    if dtype == "uint8":
        x: Any = rng.integers(0, 256, shape, np.uint8)
    elif dtype == "int8":
        x = rng.integers(-128, 128, shape, np.int8)
    else:
        x = rng.normal(0, 100, shape).astype(dtype)
        x[1] = 7  # a sample of whole numbers among others is kept as bytes, whatever it came as
    ids = [f"{name.replace(', ', '-')}-{dtype}-{i}-{len(labels)}" for i in range(len(labels))]
    return Given(x, labels, ids, "cam0")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "float64"])
def test_every_form_stores_the_same_rows(daemon: Any, dtype: str) -> None:
    client, folder, shape = daemon
    for labels in ([3, 1, -2], ["ripe", "größer 5", "3"]):
        rows = {}
        for name, write in MANY.items():
            samples = given(name + str(labels[0]), shape, dtype, labels)
            answer = post(client, write(samples))
            assert answer.status_code == 201, (name, answer.text)
            assert answer.json()["accepted"] == 3, (name, answer.text)
            assert answer.json()["ids"] == samples.ids
            rows[name] = stored(folder, samples.ids)
            again = post(client, write(samples)).json()
            assert (again["accepted"], again["duplicates"]) == (0, 3), (name, again)
        expected = [
            (
                x.astype(np.uint8).tobytes()
                if (small := bool((x == x.astype(np.uint8)).all()))
                else x.astype("<f4").tobytes(),
                "uint8" if small else "float32",
                str(label),
                "cam0",
            )
            for x, label in zip(samples.x, labels, strict=True)
        ]
        assert rows == dict.fromkeys(MANY, expected)


def test_every_form_can_be_sent_again_under_its_key(daemon: Any) -> None:
    client, _, shape = daemon
    for name, write in MANY.items():
        sent = write(given("k" + name, shape, "uint8", ["ripe", "ripe"]))
        headers = sent.all_headers | {"Idempotency-Key": name}
        first, again = (
            client.post("/samples", content=sent.body, headers=headers) for _ in range(2)
        )
        assert first.status_code == 201, (name, first.text)
        assert again.headers.get("Idempotent-Replayed") == "true", name
        assert again.content == first.content


def test_pictures_store_the_same_rows(daemon: Any) -> None:
    client, folder, shape = daemon
    if len(shape) != 3:
        answer = post(client, forms.picture(given("p", [1, 2, 2], "uint8", [1])))
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_shape")
        assert f"this one has {shape}" in answer.json()["error"]
        return
    for labels in ([3, 1, -2], ["ripe", "größer 5", "unripe"]):
        rows = []
        for name, write in (PICTURES | {"JSON": MANY["JSON"]}).items():
            samples = given("p" + name + str(labels[0]), shape, "uint8", labels)
            answer = post(client, write(samples))
            assert answer.status_code == 201, (name, answer.text)
            assert answer.json()["ids"] == samples.ids
            rows.append(stored(folder, samples.ids))
        assert rows[0] == rows[1]


def test_one_sample_stores_the_same_row(daemon: Any) -> None:
    client, folder, shape = daemon
    rows = []
    writers = dict(ONE) | MANY | ({"picture": forms.picture} if len(shape) == 3 else {})
    for name, write in writers.items():
        samples = given("o" + name + str(name in MANY), shape, "uint8", ["ripe"])
        answer = post(client, write(samples))
        assert answer.status_code == 201, (name, answer.text)
        rows.append(stored(folder, samples.ids))
    assert rows.count(rows[0]) == len(rows)


def test_what_predict_reads_gets_the_same_answer(daemon: Any) -> None:
    client, _, shape = daemon
    x = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
    header = forms.tensor("x", [1, *shape], "UINT8", x.tobytes())
    sent = {
        "JSON": Sent(forms.json.dumps(forms.numbers(x)).encode(), "application/json"),
        "base64": Sent(forms.json.dumps(forms.base64_bytes(x)).encode(), "application/json"),
        "inputs": Sent(forms.json.dumps(forms.infer_input(x)).encode(), "application/json"),
        "MessagePack": Sent(
            forms.msgspec.msgpack.encode(forms.raw_bytes(x)), "application/x-msgpack"
        ),
        "tensors": forms.binary([header], {}),
    }
    if len(shape) == 3:
        sent["picture"] = Sent(forms.png(x), "image/png")
    for name, request in sent.items():
        answer = post(client, request, "/predict")
        assert answer.status_code == 200, (name, answer.text)
        body = answer.json()
        one = body["predictions"][0] if "predictions" in body else body
        assert one["id"].startswith("p-")
        assert {"label", "goodness", "margin", "kept"} <= one.keys()


def test_no_form_is_left_out() -> None:
    samples = given("a", [1, 2, 2], "uint8", [1])
    written = [write(samples) for write in (*MANY.values(), *PICTURES.values(), forms.picture)]
    types = {sent.media_type.partition(";")[0] for sent in written}
    assert types | {"application/x-msgpack", "image/jpeg"} == set(SAMPLE_TYPES)
