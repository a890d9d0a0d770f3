"""ImageFolder: classes mixed, each picture known by itself, and what is passed over told."""

import io
import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from daemon.datasets import BadRow, Row, open_dataset
from daemon.transfer.batches import Batches, Place

Image = pytest.importorskip("PIL.Image")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), value % 256).save(stream, "png")
    return stream.getvalue()


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def many(classes: int, each: int) -> dict[str, bytes]:
    return {f"{c}/{n:03}.png": png(c * each + n) for c in range(classes) for n in range(each)}


def ids(path: Path, source: str = "here") -> dict[str, str]:
    """Id of each picture by its name."""
    batches = Batches(open_dataset(path), lambda x: x, (1, 2, 3), source).after(Place())
    return {
        name: own for batch in batches for name, own in zip(batch.names, batch.ids, strict=True)
    }


def test_classes_come_mixed_and_in_the_same_order_each_time(tmp_path):
    files = many(5, 40)
    path = folder_of(tmp_path / "a", files)
    labels = [row.label for row in open_dataset(path).rows()]
    assert sorted(labels) == sorted([*range(5)] * 40)
    assert all(len({*labels[n : n + 40]}) == 5 for n in range(0, 200, 40))
    other = folder_of(tmp_path / "b", dict(reversed(files.items())))
    names = [row.name for row in open_dataset(path).rows()]
    assert names == [row.name for row in open_dataset(other).rows()]


def test_a_folder_that_has_grown_brings_only_its_new_pictures(tmp_path):
    path = folder_of(tmp_path / "a", many(3, 10))
    before = ids(path)
    folder_of(path, {"0/0000.png": png(7), "3/1.png": png(8), "1/003.png": png(200)})
    after = ids(path)
    assert len({*before.values()}) == 30
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"0/0000.png", "3/1.png", "1/003.png"}
    assert {*ids(path, "elsewhere").values()}.isdisjoint(after.values())


def test_a_zip_of_a_folder_has_its_ids(tmp_path):
    files = many(2, 5)
    path = folder_of(tmp_path / "a", files)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"a/{name}", content)
    assert ids(tmp_path / "a.zip") == ids(path)


def test_the_class_is_the_first_folder(tmp_path):
    path = folder_of(tmp_path, {"dog/session1/1.png": png(1), "dog/session2/1.png": png(2)})
    dataset = open_dataset(path)
    assert [row.label for row in dataset.rows()] == ["dog", "dog"]
    assert dataset.notes == [
        "1 class found: dog; if the folders in it are the classes, give it itself"
    ]


def test_an_accent_apart_from_its_letter_makes_no_other_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "b\u00e4r") for form in ("NFC", "NFD"))
    path = folder_of(tmp_path, {f"{apart}/1.png": png(1), f"{composed}/2.png": png(2)})
    assert {row.label for row in open_dataset(path).rows()} == {composed}


def test_what_is_found_and_skipped_is_told(tmp_path):
    files = many(2, 3) | {f"0/{n}.gif": b"" for n in range(10)} | {"1/a.HEIC": b"", "1/b.heic": b""}
    path = folder_of(tmp_path, files | {"1/.DS_Store": b""})
    (path / "1" / "gone.png").symlink_to(path / "nowhere.png")
    assert open_dataset(path).notes == [
        "2 classes found: 0, 1",
        "12 files skipped: 10 .gif, 2 .heic; 1 broken link",
    ]


def test_a_name_that_is_no_utf8_is_one_bad_row(tmp_path):
    path = folder_of(tmp_path, {"dog/1.png": png(1)})
    for name in (b"dog/\xff.png", b"\xfe/1.png"):
        file = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(2))
    rows = {row.name: row for row in open_dataset(path).rows()}
    assert type(rows.pop("dog/1.png")) is Row
    assert {*rows} == {"dog/\\xff.png", "\\xfe/1.png"}
    assert {row.why for row in rows.values()} == {"has a name that is not UTF-8; rename it"}


@pytest.mark.parametrize("content", [b"junk", png(1)[:50]])
def test_a_damaged_image_is_one_bad_row_with_its_name_once(tmp_path, content):
    path = folder_of(tmp_path, {"0/0.png": png(0), "1/1.png": content})
    rows = list(open_dataset(path).rows())
    assert {type(row) for row in rows} == {Row, BadRow}
    (bad,) = (row for row in rows if isinstance(row, BadRow))
    assert bad.name == "1/1.png"
    assert bad.why.startswith("cannot be decoded: ")
    assert "1.png" not in bad.why
    assert "<" not in bad.why
