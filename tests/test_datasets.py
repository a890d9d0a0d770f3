"""Data sets on disk: every layout read row by row, from any row on, and no file believed."""

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from daemon.datasets import open_dataset
from daemon.datasets.rows import label_of
from daemon.errors import DataError

X = np.arange(24, dtype=np.float32).reshape(4, 6) / 8


def written(folder: Path, name: str) -> Path:
    """Four rows of six numbers, labels 0 to 3, in some layout."""
    path = folder / name
    images, labels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.arange(4, dtype=np.uint8)
    match name:
        case "a.csv":
            lines = [",".join(map(repr, [*row.tolist(), n])) for n, row in enumerate(X)]
            path.write_text("\n".join(["a,b,c,d,e,f,label", *lines]) + "\n")
        case "a.npz":
            np.savez_compressed(path, x=X, y=np.arange(4))
        case "a.ndjson":
            rows = [json.dumps({"x": row.tolist(), "label": n}) for n, row in enumerate(X)]
            path.write_text("\n".join(rows) + "\n\n")
        case "idx" | "idx.gz":
            path.mkdir()
            for what, array in (("images-idx3", images), ("labels-idx1", labels)):
                head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
                content = head + array.tobytes()
                file = path / f"t10k-{what}-ubyte{name[3:]}"
                file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        case "folder" | "folder.zip":
            image = pytest.importorskip("PIL.Image")
            with zipfile.ZipFile(folder / "all.zip", "w") as archive:
                for n in range(4):
                    png = io.BytesIO()
                    image.fromarray(images[n]).save(png, "png")
                    archive.writestr(f"{n}/{n}.png", png.getvalue())
                archive.extractall(folder / "folder")
            (folder / "all.zip").rename(folder / "folder.zip")
    return path


ALL = ["a.csv", "a.npz", "a.ndjson", "idx", "idx.gz", "folder", "folder.zip"]


@pytest.mark.parametrize("name", ALL)
def test_rows_are_the_same_from_any_row_on(tmp_path, name):
    dataset = open_dataset(written(tmp_path, name))
    whole = list(dataset.rows())
    assert sorted(row.label for row in whole) == [0, 1, 2, 3]
    assert dataset.count in (None, 4)
    assert all(file.is_file() for file in dataset.files)
    for row, x in zip(sorted(whole, key=lambda row: row.label), X, strict=True):
        np.testing.assert_array_equal(row.x.ravel(), x if name[0] == "a" else x * 8)
        assert dataset.shape in (None, row.x.shape)
    for start in range(1, 6):
        rest = list(dataset.rows(start))
        assert [row.name for row in rest] == [row.name for row in whole[start:]]
        for row, before in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(row.x, before.x)
            assert row.label == before.label


def test_an_idx_file_finds_its_labels(tmp_path):
    images = written(tmp_path, "idx") / "t10k-images-idx3-ubyte"
    assert [row.label for row in open_dataset(images).rows()] == [0, 1, 2, 3]
    images.with_name("t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="found no labels beside it"):
        open_dataset(images)


def test_labels_are_integers_where_they_look_like_them():
    assert [label_of(text) for text in ("3", "-3", " 3 ", "007", "3.0", "dog", "", "9" * 30)] == [
        *(3, -3, 3, "007", "3.0", "dog", None),
        "9" * 30,
    ]


# --- NPZ ---------------------------------------------------------------------------------------


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    ("names", "column"),
    [(("x", "y"), None), (("images", "labels"), None), (("a", "b"), "b"), (("a", "y"), None)],
)
def test_npz_arrays_by_name(tmp_path, names, column):
    path = npz(tmp_path, **dict(zip(names, (X, np.array(["p", "q", "7", ""])), strict=True)))
    rows = list(open_dataset(path, label_column=column).rows())
    assert [row.label for row in rows] == ["p", "q", 7, None]
    assert rows[0].x.dtype == np.float32


def test_npz_arrays_that_are_neither_are_named(tmp_path):
    assert open_dataset(npz(tmp_path, x=X, y=np.arange(4))).notes == []
    dataset = open_dataset(npz(tmp_path, x=X, y=np.arange(4), x_test=X, y_test=np.arange(4)))
    assert dataset.notes == ["arrays left out: x_test, y_test"]


def test_npz_bytes_stay_bytes_and_whole_floats_are_labels(tmp_path):
    labels = [0.0, 1.5, np.nan, 2.0]
    rows = list(open_dataset(npz(tmp_path, x=X.astype(np.uint8), y=labels)).rows())
    assert rows[0].x.dtype == np.uint8
    assert [getattr(row, "label", "bad") for row in rows] == [0, "bad", "bad", 2]
    large = np.array([0, 2**62, 2**62 + 1, 2**64 - 1], dtype=np.uint64)
    rows = list(open_dataset(npz(tmp_path, x=X, y=large)).rows())
    assert [getattr(row, "label", "bad") for row in rows] == [0, 2**62, "bad", "bad"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "found the arrays x; wanted one of features and one of labels"),
        ({"x": X, "y": np.arange(3)}, "4 samples and 3 labels"),
        ({"x": X, "y": np.array([{}, 1, 2, 3])}, "Python objects, which are never unpickled"),
        ({"x": np.array(["a"] * 4), "y": np.arange(4)}, "wanted numbers, one row a sample"),
        ({"x": X, "y": X}, "wanted one integer or text a sample"),
        ({"x": np.asfortranarray(X), "y": np.arange(4)}, "Fortran order"),
        ({"x": X[:0], "y": np.arange(0)}, "none of its sizes to be zero"),
    ],
)
def test_npz_files_that_cannot_be_used(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_dataset(npz(tmp_path, **arrays))


def test_npz_header_that_lies_is_refused_before_memory_is_asked_for(tmp_path):
    path = npz(tmp_path, x=X, y=np.arange(4))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x.npy"] = members["x.npy"].replace(b"(4, 6), }         ", b"(9999999999, 6), }")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"promises .* bytes, the file holds 96"):
        open_dataset(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(path)


# --- NDJSON ------------------------------------------------------------------------------------


def test_ndjson_keeps_what_is_the_samples_own(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        {"x": [[1, 2.5], [3, 4]], "label": "a", "id": "cam-1", "source": "cam", "ts": 5, "seq": 9},
        {"x": [1], "label": 3, "id": "s-17", "ts": "noon", "seq": 20},
        {"x": [1]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = open_dataset(path).rows()
    assert first.x.tolist() == [[1, 2.5], [3, 4]]
    assert (first.label, first.id, first.source, first.ts) == ("a", "cam-1", "cam", 5)
    assert (second.id, second.ts, third.label) == (None, "noon", None)  # s-17 was the store's
    assert (second.stored, first.stored, third.stored) == (("s-17", 20), None, None)
    path.write_text("\n".join(json.dumps(line) for line in [lines[0], *lines]))
    keys = [row.key for row in open_dataset(path).rows()]
    assert keys == [None, None, second.key, None]  # wherever it stands


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1]", "is no sample"),
        ('{"x": [NaN]}', "is no sample"),
        ('{"x": [1], "y": 2}', "is no sample"),
        ('{"x": [[1], [1, 2]]}', "is ragged"),
        ('{"x": ["1"]}', "is not a list of numbers"),
        ('{"x": [null]}', "is not a list of numbers"),
        ('{"x": [true]}', "is not a list of numbers"),
        (f'{{"x": [1], "label": {2**63}}}', "is no sample"),
    ],
)
def test_ndjson_lines_that_are_no_samples(tmp_path, line, why):
    (tmp_path / "a.ndjson").write_text(line + '\n{"x": [1]}\n')
    bad, good = open_dataset(tmp_path / "a.ndjson").rows()
    assert bad.name == "line 1"
    assert why in bad.why
    assert good.x.tolist() == [1]


def test_ndjson_begins_behind_a_byte_order_mark(tmp_path):
    (tmp_path / "a.ndjson").write_text('{"x": [1]}\n{"x": [2]}\n', encoding="utf-8-sig")
    rows = open_dataset(tmp_path / "a.ndjson").rows()
    assert [(row.name, row.x.tolist()) for row in rows] == [("line 1", [1]), ("line 2", [2])]


# --- which layout ------------------------------------------------------------------------------


def test_paths_that_hold_no_data_set(tmp_path):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.ndjson").touch()
    (tmp_path / "empty").mkdir()
    for name, message in {
        "a.parquet": r"found a file ending in '.parquet'; wanted an IDX folder",
        "absent.csv": "found nothing",
        "a.ndjson": "found no line",
        "empty": "found no images",
    }.items():
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / name)
