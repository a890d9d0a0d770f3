"""Batches of an import: the same rows have the same ids in every run, and others have others."""

import json
from pathlib import Path

import numpy as np
import pytest

from daemon.datasets import open_dataset
from daemon.transfer.batches import Batches, Place
from daemon.transfer.fitting import fit_dataset

SHAPE = (2,)
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


def sent_ids(batch) -> list[str]:
    return [json.loads(line)["id"] for line in batch.body.splitlines()]


def test_bodies_stay_within_the_daemons_limit(tmp_path):
    wide = np.random.default_rng(0).standard_normal((40, 30_000)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=wide, y=np.zeros(40, int))
    dataset = open_dataset(tmp_path / "a.npz")
    made = list(Batches(dataset, lambda x: x, (30_000,), "s").after(Place()))
    assert len(made) == 4
    assert all(len(batch.body) <= 8 << 20 for batch in made)
