"""The data that the benchmarks read: loaders that trust no file, and splits that are disjoint."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.augment import PADDING, crop_and_flip
from benchmarks.datasets import DIGITS, hold_out, load, load_sources
from benchmarks.samples import DataError, Samples, as_floats, label_samples


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
def test_idx_folder_becomes_one_channel_of_bytes(tmp_path, gz):
    images = write_idx(tmp_path, "train", 30, gz=gz)
    samples = load(str(tmp_path))
    assert samples.x.dtype == np.uint8
    assert samples.labels.dtype == np.int64
    np.testing.assert_array_equal(samples.x[:, 0], images)
    assert samples.classes == ("7", "8", "9")
    np.testing.assert_array_equal(samples.labels, np.arange(30) % 3)


def test_t10k_files_are_the_test_set_unless_another_is_given(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, count in ((first, 30), (second, 12)):
        folder.mkdir()
        write_idx(folder, "train", count)
    write_idx(first, "t10k", 9)
    split = load_sources(str(first)).split(seed=0)
    assert (len(split.train), len(split.test), split.held_out) == (30, 9, False)
    split = load_sources(str(first), str(second)).split(seed=0)
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


@pytest.mark.parametrize(
    ("target", "wrap"), [("pictures", ""), ("pictures.zip", ""), ("pictures.zip", "set/")]
)
def test_image_folder_directory_and_zip(tmp_path, target, wrap):
    files = {"dog/1.png": png((255, 0, 51)), "cat/a/2.png": png(102), "cat/readme.txt": b"no"}
    files |= {"__MACOSX/cat/2.png": b"junk"}
    samples = load(write_images(tmp_path / target, {wrap + n: c for n, c in files.items()}))
    assert samples.classes == ("cat", "dog")
    assert samples.x.shape == (2, 3, 5, 4)
    assert samples.x.dtype == np.uint8
    by_class = dict(zip(samples.labels.tolist(), samples.x, strict=True))
    assert by_class[1][:, 0, 0].tolist() == [255, 0, 51]
    assert (by_class[0] == 102).all()  # grey among colours is repeated


def test_grey_images_stay_one_channel(tmp_path):
    path = write_images(tmp_path / "g", {"a/1.png": png(0), "b/1.png": png(255)})
    assert load(path).x.shape == (2, 1, 5, 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": "good", "b/1.png": "large"}, r"is (8x5|4x5), the first image (8x5|4x5)"),
        ({"a/1.png": "good", "b/1.png": "cut"}, "b/1.png: cannot be decoded"),
        ({"a/1.png": "good", "b/1.png": "junk"}, "b/1.png: cannot be decoded"),
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


# --- CSV and NPZ -------------------------------------------------------------------------------


def test_csv_and_npz_rows_are_samples_too(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 2
    np.savez(tmp_path / "a.npz", x=x, y=np.array([2, 10, 2, 10]))
    lines = [",".join(map(str, row)) for row in x.tolist()]
    text = "\n".join(f"{line},{label}" for line, label in zip(lines, (2, 10, 2, 10), strict=True))
    (tmp_path / "a.csv").write_text(text)
    for name in ("a.npz", "a.csv"):
        samples = load(str(tmp_path / name))
        assert samples.classes == ("2", "10")
        assert samples.labels.tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(samples.x, x)
    for line, message in {
        "1,2,x,2": "line 5: holds a cell",
        "1,2,3,": "line 5 has no label",
    }.items():
        (tmp_path / "a.csv").write_text(f"{text}\n{line}\n")
        with pytest.raises(DataError, match=message):
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
    sources = load_sources(DIGITS)
    whole, cut = (sources.split(seed=1, limit=limit) for limit in (None, 50))
    assert (len(whole.train), len(whole.test), whole.held_out) == (1438, 359, True)
    assert (len(cut.train), len(cut.test)) == (50, 359)
    assert (whole.train.x.min(), whole.train.x.max()) == (0.0, 1.0)
    rows = {row.tobytes() for row in whole.train.x}
    assert all(row.tobytes() in rows for row in cut.train.x)


def test_test_set_must_fit_the_training_set(tmp_path):
    def write(name: str, size: tuple[int, int], labels: list) -> str:
        return write_images(tmp_path / name, {f"{c}/{i}.png": png(i, size) for i, c in labels})

    train = write("train", (4, 5), [*enumerate("bcdbcd")])
    with pytest.raises(DataError, match=r"shape \[1, 5, 4\], test samples \[1, 6, 4\]"):
        load_sources(train, write("tall", (4, 6), [*enumerate("b")]))
    with pytest.raises(DataError, match="test samples of class 'a' have no training"):
        load_sources(train, write("new", (4, 5), [*enumerate("ab")]))
    split = load_sources(train, write("part", (4, 5), [*enumerate("dc")])).split(seed=0)
    assert sorted(split.test.labels.tolist()) == [1, 2]
    with pytest.raises(DataError, match="all samples are of class 'b'"):
        load_sources(write("one", (4, 5), [*enumerate("bbbbbbbbb")]))
    with pytest.raises(DataError, match="too few"):
        load_sources(write("few", (4, 5), [*enumerate("bc")])).split(seed=0)


def test_layouts_that_are_not_known(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"found a file ending in '.parquet'; wanted an IDX"):
        load(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="found nothing"):
        load(str(tmp_path / "absent.npz"))


# --- samples and augmentation ------------------------------------------------------------------


def test_bytes_become_floats_only_when_taken():
    samples = label_samples(np.arange(12, dtype=np.uint8).reshape(12, 1), np.arange(12) % 2, "a")
    np.testing.assert_array_equal(
        as_floats(samples.x), samples.x.astype(np.float32) / np.float32(255)
    )
    few = samples.floats(5)
    assert (few.x.dtype, few.labels.tolist()) == (np.float32, [0, 1, 0, 1])
    np.testing.assert_array_equal(few.x, as_floats(samples.x[[0, 3, 6, 9]]))
    assert len(samples.floats(12)) == 12
    floats = np.ones((2, 3), dtype=np.float32) * 300
    assert as_floats(floats) is floats  # numbers stay as they are


@pytest.mark.parametrize(
    ("x", "message"),
    [(np.zeros((2, 3)), "2 samples and 3 labels"), (np.zeros((3, 0)), r"x has shape \[3, 0\]")],
)
def test_samples_that_cannot_be(x, message):
    with pytest.raises(DataError, match=message):
        label_samples(x, np.arange(3), "a")


def test_crops_and_mirrors_are_windows_of_the_padded_image():
    images = np.random.default_rng(0).integers(1, 256, (200, 2, 6, 5)).astype(np.uint8)
    before = images.copy()
    found = crop_and_flip(images, np.random.default_rng(1))
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    seen = set()
    for image, shifted in zip(images, found, strict=True):
        padded = np.pad(image, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
        windows = {
            (down, right, step): padded[:, down : down + 6, right : right + 5][:, :, ::step]
            for down in range(9)
            for right in range(9)
            for step in (1, -1)
        }
        (match,) = (key for key, window in windows.items() if np.array_equal(window, shifted))
        seen.add(match)
    downs, rights, steps = (set(values) for values in zip(*seen, strict=True))
    assert downs == rights == set(range(9))
    assert steps == {1, -1}
    again = crop_and_flip(images, np.random.default_rng(1))
    np.testing.assert_array_equal(again, found)
