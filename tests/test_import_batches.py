"""Batches of an import: the same rows have the same ids in every run, and others have others."""

import json
from pathlib import Path

import numpy as np
import pytest

from daemon.datasets import Row, open_dataset
from daemon.ingest.forms import FORMS, Payload
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.sample import Sample
from daemon.ingest.tensors import LENGTH_HEADER
from daemon.transfer.batches import Batches, Place
from daemon.transfer.bodies import request_of
from daemon.transfer.fitting import fit_dataset
from models import ModelSpec

SHAPE = (2,)
SPEC = ModelSpec("mlp", SHAPE, 3, (8,))
ROWS = 600


def batches(path: Path, source: str = "here") -> Batches:
    dataset = open_dataset(path)
    return Batches(dataset, fit_dataset(dataset, SHAPE)[0], SHAPE, source)


def ids(path: Path, source: str = "here", start: Place | None = None) -> list[str]:
    found = []
    for batch in batches(path, source).after(start or Place()):
        found += sent_ids(batch)
    return found


def csv(path: Path, rows: np.ndarray) -> Path:
    path.write_text("".join(f"{a},{b},{int(a) % 3}\n" for a, b in rows.tolist()))
    return path


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (ROWS, 2)).astype(np.float32)  # many alike


def test_ids_are_all_different_and_those_of_the_last_run(tmp_path, rows):
    path = csv(tmp_path / "a.csv", rows)
    first = ids(path)
    assert len(set(first)) == ROWS
    assert first == ids(path)
    assert all(len(one) <= 64 for one in first)


def test_a_run_that_goes_on_sends_what_was_left(tmp_path, rows):
    path = csv(tmp_path / "a.csv", rows)
    whole = list(batches(path).after(Place()))
    assert len(whole) == 3
    for number, batch in enumerate(whole[:-1]):
        assert list(batches(path).after(batch.stop)) == whole[number + 1 :]


def test_a_file_that_has_grown_brings_only_what_is_new(tmp_path, rows):
    part, whole = csv(tmp_path / "a.csv", rows[:300]), csv(tmp_path / "b.csv", rows)
    assert ids(whole)[:300] == ids(part)


def test_another_row_label_or_source_makes_other_ids_from_there_on(tmp_path, rows):
    path = csv(tmp_path / "a.csv", rows)
    before = ids(path)
    assert set(ids(path, "there")).isdisjoint(before)
    text = path.read_text().splitlines()
    for line in (text[100] + "0", "9," + text[100]):  # another label; no sample at all
        changed = [*text[:100], line, *text[101:]]
        path.write_text("\n".join(changed))
        after = ids(path)
        assert after[:100] == before[:100]
        assert set(after[100:]).isdisjoint(before)


def test_bad_rows_are_named_and_the_others_of_their_batch_are_sent(tmp_path):
    path = tmp_path / "a.ndjson"
    lines = [{"x": [1, 2]}, {"x": [1, 2, 3]}, {"x": [1e39, 0]}, {"x": [3, 4], "id": "cam-1"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (batch,) = batches(path).after(Place())
    assert batch.names == ["line 1", "line 4"]
    assert [bad.name for bad in batch.bad] == ["line 2", "line 3"]
    assert "shape [3], the model needs [2]" in batch.bad[0].why
    assert "that float32 does not hold" in batch.bad[1].why
    assert sent_ids(batch)[1] == "cam-1"


def entries(body: bytes, headers: dict[str, str], spec: ModelSpec = SPEC) -> list[Sample]:
    """What the daemon reads in a request."""
    form = FORMS[headers["Content-Type"]]
    sent = Payload(body, headers["Content-Type"], headers.get(LENGTH_HEADER), None)
    return form.samples(sent, spec, KeptPredictions(by_default=False)).entries


def sent_ids(batch) -> list[str]:
    return [entry.id for entry in entries(batch.body, batch.headers)]


def test_bodies_stay_within_the_daemons_limit(tmp_path):
    wide = np.random.default_rng(0).standard_normal((40, 30_000)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=wide, y=np.zeros(40, int))
    dataset = open_dataset(tmp_path / "a.npz")
    made = list(Batches(dataset, lambda x: x, (30_000,), "s").after(Place()))
    assert len(made) == 4
    assert all(len(batch.body) <= 8 << 20 for batch in made)


NUMBERS = [np.array([0, 255], np.uint8), np.array([0.1, -0.0], np.float32)]


@pytest.mark.parametrize("label", [3, "dog", None])
@pytest.mark.parametrize("source", ["cam", ""])
@pytest.mark.parametrize("x", NUMBERS)
def test_rows_that_are_alike_go_as_tensors(label, source, x):
    rows = [Row("a", x, label, source=source)] * 2
    body, headers = request_of(rows, ["i-1", "i-2"])
    assert headers["Content-Type"] == "application/octet-stream"
    for entry, own_id in zip(entries(body, headers), ["i-1", "i-2"], strict=True):
        assert (entry.label, entry.source, entry.id) == (label, source, own_id)
        assert (bytes(entry.features), entry.dtype) == (x.tobytes(), str(x.dtype))


@pytest.mark.parametrize(
    "changes", [{"label": "3"}, {"label": None}, {"source": "other"}, {"ts": 1.5}]
)
def test_rows_that_tensors_cannot_say_go_as_lines(changes):
    one = {"label": 3, "source": "cam", "ts": None}
    rows = [Row("a", x, **(one | more)) for x, more in zip(NUMBERS, ({}, changes), strict=True)]
    body, headers = request_of(rows, ["i-1", "i-2"])
    assert headers["Content-Type"] == "application/x-ndjson"
    for entry, row in zip(entries(body, headers), rows, strict=True):
        assert (entry.label, entry.source) == (row.label, row.source)
        assert entry.ts == (None if row.ts is None else str(row.ts))
        assert bytes(entry.features) == row.x.tobytes()


def test_a_time_stamp_keeps_its_digits(tmp_path):
    path = tmp_path / "a.ndjson"
    stamps = ["1700000000123456789", "5", "1700000000.25", '"5.0"']
    path.write_text("".join(f'{{"x": [1, 2], "ts": {ts}}}\n' for ts in stamps))
    (batch,) = batches(path).after(Place())
    assert [line.split(b'"ts":')[1] for line in batch.body.splitlines()] == [
        ts.encode() + b"}" for ts in stamps
    ]
    kept = [entry.ts for entry in entries(batch.body, batch.headers)]
    assert kept == ["1700000000123456789", "5", "1700000000.25", "5.0"]
