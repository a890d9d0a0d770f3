"""Rows sorted by label are told, shuffled ones and files of one class are not."""

import io

import numpy as np
import pytest

from daemon.datasets import open_dataset
from daemon.transfer.order import order_note

SHUFFLE = np.random.default_rng(0).permutation


def note_for(tmp_path, labels) -> str | None:
    np.savez(tmp_path / "a.npz", x=np.zeros((len(labels), 2), np.uint8), y=labels)
    return order_note(open_dataset(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (np.repeat(np.arange(10), 500), "1,000"),
        (np.repeat(np.arange(10), 20), "200"),
        (np.repeat(np.arange(2), 30), "60"),
        (np.repeat(SHUFFLE(200), 40), "1,000"),
    ],
)
def test_sorted_rows_are_told(tmp_path, labels, rows):
    told = note_for(tmp_path, labels)
    assert told is not None
    assert told.startswith(f"the first {rows} rows come sorted by label")
    assert "shuffle the file" in told


@pytest.mark.parametrize(
    "labels",
    [
        SHUFFLE(np.repeat(np.arange(10), 500)),
        SHUFFLE(np.repeat([0, 1], [950, 50])),
        np.arange(1000) % 2,
        np.zeros(999, int),
        np.repeat(np.arange(4), 10),
    ],
)
def test_other_rows_are_not(tmp_path, labels):
    assert note_for(tmp_path, labels) is None


def test_a_folder_of_images_comes_shuffled(tmp_path):
    image = pytest.importorskip("PIL.Image")
    png = io.BytesIO()
    image.new("L", (2, 2)).save(png, "png")
    for number in range(120):
        folder = tmp_path / str(number // 60)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.png").write_bytes(png.getvalue())
    assert order_note(open_dataset(tmp_path)) is None
