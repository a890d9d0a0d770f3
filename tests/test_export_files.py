"""Exported files: any samples written and read back are the same samples, to the bit."""

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from daemon.datasets import open_dataset
from daemon.transfer.export_files import kind_of

FEATURES = 3

floats = arrays(
    np.float32, FEATURES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
small = arrays(np.uint8, FEATURES)
# As the store takes them: printable, without spaces around; one that looks like an integer is one.
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=64
).filter(lambda text: text.isprintable() and not text.lstrip("-").isdecimal())
labels = st.none() | st.integers(-(10**17), 10**17) | names
samples = st.lists(st.tuples(floats | small, labels), min_size=1, max_size=6)


def entry(x: np.ndarray, label: int | str | None, seq: int) -> dict:
    fields = {"id": f"s-{seq}", "seq": seq, "label": label, "source": "cam", "ts": None}
    return fields | {"dtype": str(x.dtype), "x": x.tolist()}


@pytest.mark.parametrize("ending", ["ndjson", "csv", "npz"])
@given(given_samples=samples)
def test_written_and_read_back_they_are_the_same(ending, given_samples):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out.{ending}"
        with path.open("w+b") as file, closing(kind_of(path)(file, (FEATURES,))) as out:
            for seq, (x, label) in enumerate(given_samples, start=1):
                out.write(entry(x, label, seq))
            out.finish()
        rows = list(open_dataset(path).rows())
    assert [row.label for row in rows] == [label for _, label in given_samples]
    for row, (x, _) in zip(rows, given_samples, strict=True):
        assert row.x.astype(np.float32).tobytes() == x.astype(np.float32).tobytes()
    if ending == "npz":
        whole = all(x.dtype == np.uint8 for x, _ in given_samples)
        assert rows[0].x.dtype == (np.uint8 if whole else np.float32)
    if ending == "ndjson":
        assert {(row.source, row.id) for row in rows} == {("cam", None)}


def test_an_npz_is_compressed_and_numpy_reads_it(tmp_path):
    path = tmp_path / "out.npz"
    with path.open("w+b") as file, closing(kind_of(path)(file, (100, 1, 1))) as out:
        for seq in range(50):
            out.write(entry(np.full(100, seq, np.uint8), seq % 2, seq))
        out.finish()
    assert path.stat().st_size < 2000
    with np.load(path) as arrays_read:
        x, y = arrays_read["x"], arrays_read["y"]
    assert (x.shape, x.dtype) == ((50, 100, 1, 1), np.uint8)
    assert x[:, 0, 0, 0].tolist() == [*range(50)]
    assert (y.dtype, y.tolist()) == (np.int64, [0, 1] * 25)
