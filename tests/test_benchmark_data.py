"""The data that the benchmarks read: loaders that trust no file, and splits that are disjoint."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import DIGITS, hold_out, load, open_split
from benchmarks.samples import DataError, Samples

ROOT = Path(__file__).resolve().parents[1]
FIELDS = [
    "method", "model", "width", "data", "seed", "epochs", "batch", "parameters", "accuracy",
    "accuracy_by_epoch", "train_seconds", "step_milliseconds", "peak_training_bytes",
    "energy_joules", "commit", "machine",
]  # fmt: skip


def idx_bytes(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    head = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, part: str, count: int, *, gz: bool = False) -> np.ndarray:
    images = np.random.default_rng(count).integers(0, 256, (count, 4, 3))
    for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 3 + 7)):
        content = idx_bytes(array)
        if gz:
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{part}-{name}-ubyte").write_bytes(content)
    return images


# --- IDX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
def test_idx_folder_becomes_one_channel_in_0_to_1(tmp_path, gz):
    images = write_idx(tmp_path, "train", 30, gz=gz)
    samples = load(str(tmp_path))
    assert samples.x.dtype == np.float32
    assert samples.labels.dtype == np.int64
    np.testing.assert_array_equal(samples.x[:, 0], images.astype(np.float32) / np.float32(255))
    assert samples.classes == ("7", "8", "9")
    np.testing.assert_array_equal(samples.labels, np.arange(30) % 3)


def test_t10k_files_are_the_test_set_unless_another_is_given(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, count in ((first, 30), (second, 12)):
        folder.mkdir()
        write_idx(folder, "train", count)
    write_idx(first, "t10k", 9)
    split = open_split(str(first), seed=0)
    assert (len(split.train), len(split.test), split.held_out) == (30, 9, False)
    split = open_split(str(first), str(second), seed=0)
    assert (len(split.train), len(split.test), split.held_out) == (30, 12, False)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((31, 4, 3), "promises .* = 372 bytes, the file holds only 360"),
        ((29, 4, 3), "promises .* = 348 bytes, the file holds more"),
        # 79 octillion bytes: must be refused by what arrives, not by trying to allocate it.
        ((2**32 - 1,) * 3, "the file holds only 360"),
    ],
)
def test_idx_header_that_lies_is_refused(tmp_path, gz, shape, message):
    images = write_idx(tmp_path, "train", 30)
    name = tmp_path / "train-images-idx3-ubyte"
    content = idx_bytes(images, shape)
    name.unlink()
    if gz:
        name = name.with_name(name.name + ".gz")
        content = gzip.compress(content)
    name.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


def test_damaged_idx_files_are_named(tmp_path):
    write_idx(tmp_path, "train", 30, gz=True)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load(str(tmp_path))
    images.write_bytes(b"\x1f\x8b plainly no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path))
    images.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0"))
    with pytest.raises(DataError, match="ends inside its header"):
        load(str(tmp_path))
    images.write_bytes(gzip.compress(bytes((0, 0, 0x0D, 3)) + bytes(12)))  # float32 IDX
    with pytest.raises(DataError, match="starts with 00 00 0d 03"):
        load(str(tmp_path))
    images.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="wanted train-labels-idx1-ubyte"):
        load(str(tmp_path))


# --- ImageFolder -------------------------------------------------------------------------------


def png(value: int | tuple[int, int, int], size: tuple[int, int] = (4, 5)) -> bytes:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.new("L" if isinstance(value, int) else "RGB", size, value).save(stream, "png")
    return stream.getvalue()


def write_images(path: Path, files: dict[str, bytes]) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return str(path)


@pytest.mark.parametrize("target", ["pictures", "pictures.zip"])
@pytest.mark.parametrize("wrap", ["", "set/"])
def test_image_folder_directory_and_zip(tmp_path, target, wrap):
    files = {"dog/1.png": png((255, 0, 51)), "cat/a/2.png": png(102), "cat/readme.txt": b"no"}
    files |= {"__MACOSX/cat/2.png": b"junk"}
    samples = load(write_images(tmp_path / target, {wrap + n: c for n, c in files.items()}))
    assert samples.classes == ("cat", "dog")
    assert samples.x.shape == (2, 3, 5, 4)
    np.testing.assert_allclose(samples.x[1, :, 0, 0], [1.0, 0.0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(samples.x[0], 0.4, rtol=1e-6)  # grey among colours is repeated


def test_grey_images_stay_one_channel(tmp_path):
    path = write_images(tmp_path / "g", {"a/1.png": png(0), "b/1.png": png(255)})
    assert load(path).x.shape == (2, 1, 5, 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": "good", "b/1.png": "large"}, "is 8x5, the first image 4x5"),
        ({"a/1.png": "good", "b/1.png": "cut"}, "b/1.png cannot be decoded"),
        ({"a/1.png": "good", "b/1.png": "junk"}, "b/1.png cannot be decoded"),
        ({"1.png": "good"}, "in no class folder"),
        ({"a/readme.txt": "junk"}, "found no images"),
        ({"train/1.png": "good", "test/1.png": "good"}, "which are splits, not classes"),
    ],
)
@pytest.mark.parametrize("target", ["pictures", "pictures.zip"])
def test_image_folders_that_cannot_be_used(tmp_path, target, files, message):
    contents = {"good": png(3), "large": png(3, (8, 5)), "junk": b"junk", "cut": png(3)[:50]}
    path = write_images(tmp_path / target, {name: contents[kind] for name, kind in files.items()})
    with pytest.raises(DataError, match=message):
        load(path)


def test_truncated_zip(tmp_path):
    path = Path(write_images(tmp_path / "p.zip", {"a/1.png": png(1), "b/1.png": png(2)}))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        load(str(path))


# --- NPZ ---------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_npz(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.array(["b", "a", "b", "c"]))
    samples = load(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(samples.x, x.astype(np.float32) / np.float32(255))
    assert samples.classes == ("a", "b", "c")
    assert samples.labels.tolist() == [1, 0, 1, 2]
    np.savez(tmp_path / "b.npz", x=x.astype(np.float64) * 3, y=np.array([3, 10, 9, 3]))
    samples = load(str(tmp_path / "b.npz"))
    np.testing.assert_array_equal(samples.x, x.astype(np.float32) * 3)  # numbers stay as they are
    assert samples.classes == ("3", "9", "10")


def test_npz_that_carries_a_pickle_is_not_unpickled(tmp_path):
    touched = tmp_path / "touched"
    x = np.array([[Bomb(touched)]], dtype=object)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0]))
    with pytest.raises(DataError, match="x holds Python objects, which would be unpickled"):
        load(str(tmp_path / "a.npz"))
    assert not touched.exists()


@pytest.mark.parametrize("shape", [(10**12, 8), (3, 8), (1, 8)])
def test_npz_header_that_lies_is_refused(tmp_path, shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(2 * 8 * 4))
        stream = io.BytesIO()
        np.save(stream, np.array([0, 1]))
        archive.writestr("y.npy", stream.getvalue())
    with pytest.raises(DataError, match="the header of x promises"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3))}, "found x; wanted the arrays x and y"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, "2 samples and 3 labels"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, "y is float64"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 1), int)}, r"y is int64 \[2, 1\]"),
        ({"x": np.zeros((2, 3), complex), "y": np.zeros(2, int)}, "wanted real numbers"),
        ({"x": np.zeros(2), "y": np.zeros(2, int)}, r"x has shape \[2\]"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, r"x has shape \[0, 3\]"),
        ({"x": np.array([[1.0], [1e300]]), "y": np.zeros(2, int)}, "sample 1 holds"),
        ({"x": np.array([[np.nan], [1]]), "y": np.zeros(2, int)}, "sample 0 holds"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "a.npz"))


def test_truncated_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((9, 9)), y=np.zeros(9, int))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="cannot be read"):
        load(str(path))


# --- CSV ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["", "temp,hum,label\n", "\ufefftemp,hum,label\r\n"])
def test_csv(tmp_path, head):
    path = tmp_path / "a.csv"
    path.write_text(head + "1,2.5,10\n-3,4e1,9\n\n0,0, 10\n", encoding="utf-8")
    samples = load(str(path))
    assert samples.x.tolist() == [[1.0, 2.5], [-3.0, 40.0], [0.0, 0.0]]
    assert samples.classes == ("9", "10")
    assert samples.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,a\n1,,b\n", "a.csv line 2 column 2: the value is missing"),
        (",2,a\n1,2,b\n", "line 1 column 1: the value is missing"),
        ("1,2,a\n1,2,\n", "line 2: the label .* is missing"),
        ("1,2,a\n1,2\n", "line 2: 2 columns; wanted 3"),
        ("1,2,a\n1,x,b\n", "line 2 column 2: 'x' is not a finite number"),
        ("1,2,a\n1,nan,b\n", "line 2 column 2: 'nan' is not a finite number"),
        ("1,2,a\n1,1e300,b\n", "sample 1 holds a value that is .* beyond float32"),
        ("5\n6\n", "line 1: 1 columns; wanted at least 2"),
        ("", r"x has shape \[0, 0\]"),
        ("f,g,label\n", r"x has shape \[0, 0\]"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "a.csv"))


def test_csv_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1,2,caf\xe9\n")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path / "a.csv"))


# --- splits ------------------------------------------------------------------------------------


def test_held_out_fifth_is_seeded_and_disjoint():
    x = np.arange(103, dtype=np.float32)[:, None]
    samples = Samples(x, np.arange(103) % 2, ("a", "b"))
    train, test = hold_out(samples, np.random.default_rng(3))
    assert (len(train), len(test)) == (83, 20)
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == x[:, 0].tolist()
    again = hold_out(samples, np.random.default_rng(3))[1]
    other = hold_out(samples, np.random.default_rng(4))[1]
    np.testing.assert_array_equal(again.x, test.x)
    assert not np.array_equal(other.x, test.x)


def test_digits_are_split_and_limited_by_seed():
    whole, cut = (open_split(DIGITS, seed=1, limit=limit) for limit in (None, 50))
    assert (len(whole.train), len(whole.test), whole.held_out) == (1438, 359, True)
    assert (len(cut.train), len(cut.test)) == (50, 359)
    assert (whole.train.x.min(), whole.train.x.max()) == (0.0, 1.0)
    rows = {row.tobytes() for row in whole.train.x}
    assert all(row.tobytes() in rows for row in cut.train.x)


def test_test_set_must_fit_the_training_set(tmp_path):
    def write(name: str, features: int, labels: list[str]) -> str:
        path = tmp_path / name
        path.write_text("".join("1," * features + label + "\n" for label in labels))
        return str(path)

    train = write("train.csv", 2, ["b", "c", "d"] * 4)
    with pytest.raises(DataError, match=r"shape \[2\], test samples \[3\]"):
        open_split(train, write("wide.csv", 3, ["b"]), seed=0)
    with pytest.raises(DataError, match="test samples of class 'a' have no training"):
        open_split(train, write("new.csv", 2, ["a", "b"]), seed=0)
    split = open_split(train, write("part.csv", 2, ["d", "c"]), seed=0)
    assert split.test.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="all samples are of class 'b'"):
        open_split(write("one.csv", 2, ["b"] * 9), seed=0)
    with pytest.raises(DataError, match="too few"):
        open_split(write("few.csv", 2, ["b", "c"]), seed=0)


def test_layouts_that_are_not_known(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"found a file ending in '.parquet'; wanted an IDX"):
        load(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="found nothing"):
        load(str(tmp_path / "absent.npz"))
