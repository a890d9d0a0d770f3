"""Labelled data from the layouts that people already have, as arrays.

| given | layout |
| --- | --- |
| a folder with `train-images-idx3-ubyte[.gz]` | IDX, as MNIST comes; `t10k-*` is its test set |
| any other folder, or a `.zip` | ImageFolder: `<class>/<any name>.<jpg, png, ...>` |
| a `.npz` | `x` `[n, ...]`, channels before height and width, and `y` `[n]`, integers or names |
| a `.csv` | numbers, the label in the last column; a first line of names is stepped over |
| the word `digits` | scikit-learn's 1,797 digits of 8x8 pixels |

Bytes become float32 in 0..1 (divided by 255); numbers that are not bytes stay as they are, since
every method standardises its input. Files are not trusted: what a header promises is compared with
what the file holds before memory is asked for, and nothing is ever unpickled.

The formats that need more than a page live beside this file: `benchmarks/images.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import math
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import DataError, Samples, label_samples

DIGITS = "digits"
_CHUNK_BYTES = 1 << 20
# One byte of deflate stands for at most 1032 bytes (zlib.net, technical details); more is a lie.
_DEFLATE_RATIO_MAX = 1032
_IDX_UBYTE = 0x08


@dataclasses.dataclass(frozen=True)
class Split:
    """What is learned from, and what is only ever asked about.

    Args:
        train: Training samples.
        test: Test samples, with the class indices of `train`.
        held_out: Whether `test` was taken from the training data for want of a test set.
    """

    train: Samples
    test: Samples
    held_out: bool


def open_split(data: str, test: str | None = None, *, seed: int, limit: int | None = None) -> Split:
    """Load training and test samples.

    Args:
        data: Path, or the word `digits`.
        test: Path of the test set; None: the `t10k` files of an IDX folder, else a fifth of `data`.
        seed: Draws the held-out fifth, and the samples that `limit` keeps.
        limit: Most training samples kept; None: all. The test set is never cut.

    Raises:
        DataError: A file is missing, damaged, or not of a known layout, or the two sets differ in
            shape or classes.
    """
    train = load(data)
    if len(train.classes) < 2:
        raise DataError(f"{data}: all samples are of class {train.classes[0]!r}; two are needed")
    random = np.random.default_rng(seed)
    held_out = False
    if test is not None:
        asked = load(test, prefer_test=True)
    elif has_idx(data, "t10k"):
        asked = load(data, prefer_test=True)
    else:
        train, asked = hold_out(train, random)
        held_out = True
    if asked.x.shape[1:] != train.x.shape[1:]:
        raise DataError(
            f"training samples have shape {[*train.x.shape[1:]]}, "
            f"test samples {[*asked.x.shape[1:]]}: both need the same"
        )
    if limit is not None and limit < len(train):
        train = train.take(np.sort(random.permutation(len(train))[:limit]))
    return Split(train, asked.with_classes(train.classes), held_out)


def hold_out(samples: Samples, random: np.random.Generator) -> tuple[Samples, Samples]:
    """Part samples into four fifths and one fifth at random: `(train, test)`, disjoint."""
    order = random.permutation(len(samples))
    count = len(samples) // 5
    if count == 0:
        raise DataError(f"{len(samples)} samples are too few to hold a fifth out; 5 are needed")
    return samples.take(np.sort(order[count:])), samples.take(np.sort(order[:count]))


def load(data: str, *, prefer_test: bool = False) -> Samples:
    """All samples of one path.

    Args:
        data: Path, or the word `digits`.
        prefer_test: Of an IDX folder, take the `t10k` files where it has them.

    Raises:
        DataError: Nothing is there, it is damaged, or its layout is not known.
    """
    if data == DIGITS:
        return _load_digits()
    path = Path(data)
    kind = path.suffix.lower()
    if path.is_dir():
        for part in ("t10k", "train") if prefer_test else ("train",):
            if has_idx(data, part):
                return _load_idx(path, part)
    if path.is_dir() or (path.is_file() and kind == ".zip"):
        from benchmarks.images import load_image_folder

        return load_image_folder(path)
    if path.is_file() and kind == ".npz":
        return _load_npz(path)
    if path.is_file() and kind == ".csv":
        return _load_csv(path)
    found = f"a file ending in {kind!r}" if path.is_file() else "nothing"
    raise DataError(
        f"{data}: found {found}; wanted an IDX folder, an ImageFolder folder or .zip, a .npz with "
        f"x and y, a .csv with the label last, or the word {DIGITS!r}"
    )


def has_idx(data: str, part: str) -> bool:
    """Whether a folder holds the IDX images of `part`, `train` or `t10k`."""
    return _idx_file(Path(data), part, "images", 3) is not None


def _idx_file(folder: Path, part: str, what: str, axes: int) -> Path | None:
    """`train-images-idx3-ubyte`, or with the dot that some copies have; plain or .gz."""
    names = (f"{part}-{what}{sign}idx{axes}-ubyte{end}" for sign in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _load_idx(folder: Path, part: str) -> Samples:
    files = [_idx_file(folder, part, "images", 3), _idx_file(folder, part, "labels", 1)]
    if files[0] is None or files[1] is None:
        raise DataError(f"{folder}: found {part}-images, wanted {part}-labels-idx1-ubyte beside it")
    images, labels = _read_idx(files[0], axes=3), _read_idx(files[1], axes=1)
    return label_samples(images[:, None], labels, str(folder))  # one channel: [n, 1, h, w]


def _read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """An IDX file of bytes (yann.lecun.com/exdb/mnist): type, axes, sizes big-endian, then data."""
    try:
        with _open_bytes(path) as stream:
            head = stream.read(4)
            if len(head) < 4 or head != bytes((0, 0, _IDX_UBYTE, axes)):
                raise DataError(
                    f"{path}: starts with {head.hex(' ') or 'nothing'}; an IDX file of bytes with "
                    f"{axes} axes starts with 00 00 08 0{axes}"
                )
            sizes = stream.read(4 * axes)
            if len(sizes) < 4 * axes:
                raise DataError(f"{path}: ends inside its header; copy the file again")
            shape = struct.unpack(f">{axes}I", sizes)
            promised = math.prod(shape)
            body = _read_at_most(stream, promised + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; copy the file again") from error
    if len(body) != promised:
        held = f"only {len(body)}" if len(body) < promised else "more"
        raise DataError(
            f"{path}: the header promises {[*shape]} = {promised} bytes, the file holds {held}; "
            "copy the file again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _read_at_most(stream: IO[bytes], limit: int) -> bytearray:
    """Up to `limit` bytes; memory grows with what arrives, never with what a header says."""
    body = bytearray()
    while len(body) < limit:
        chunk = stream.read(min(_CHUNK_BYTES, limit - len(body)))
        if not chunk:
            break
        body += chunk
    return body


def _load_npz(path: Path) -> Samples:
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if y.ndim != 1 or y.dtype.kind not in "iubU":
        raise DataError(
            f"{path}: y is {y.dtype} {[*y.shape]}; wanted one integer or name per sample, [n]"
        )
    return label_samples(x, y, str(path))


def _check_npz(path: Path) -> None:
    """Refuse an archive whose arrays are pickles, or whose headers promise more than it holds."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        missing = [name for name in ("x", "y") if f"{name}.npy" not in members]
        if missing:
            found = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "nothing"
            raise DataError(f"{path}: found {found}; wanted the arrays x and y")
        for name in ("x", "y"):
            info = members[f"{name}.npy"]
            with archive.open(info) as member:
                shape, dtype = _npy_header(member)
                held = info.file_size - member.tell()
            if dtype.hasobject:
                raise DataError(
                    f"{path}: array {name} holds Python objects, which would be unpickled; "
                    "save it with a number or string dtype"
                )
            promised = math.prod(shape) * dtype.itemsize
            if promised != held or info.file_size > _DEFLATE_RATIO_MAX * size:
                raise DataError(
                    f"{path}: the header of {name} promises {[*shape]} {dtype} = {promised} bytes, "
                    f"a file of {size} bytes holds {held} of it at most; save the file again"
                )


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"npy version {version} is not one of {[*readers]}")
    shape, _, dtype = readers[version](member)
    return shape, dtype


def _load_csv(path: Path) -> Samples:
    numbers = array("f")
    labels: list[str] = []
    features = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for line, row in _csv_rows(stream):
                if not labels:
                    features = len(row) - 1
                if len(row) != features + 1 or features == 0:
                    wanted = features + 1 if features else "at least 2"
                    raise DataError(f"{path} line {line}: {len(row)} columns; wanted {wanted}")
                numbers.extend(_csv_numbers(row[:-1], f"{path} line {line}"))
                if not row[-1].strip():
                    raise DataError(f"{path} line {line}: the label (last column) is missing")
                labels.append(row[-1].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    x = np.frombuffer(numbers, dtype=np.float32).reshape(len(labels), features)
    return label_samples(x, _integers_if_all(labels), str(path))


def _csv_rows(stream: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold data, with their line number; a first line of names is stepped over."""
    reader = csv.reader(stream)
    for row in reader:
        if not row:
            continue
        names = row[:-1] if reader.line_num == 1 else []
        if names and all(name.strip() and not _is_number(name) for name in names):
            continue
        yield reader.line_num, row


def _csv_numbers(fields: list[str], where: str) -> list[float]:
    for column, field in enumerate(fields, start=1):
        if not field.strip():
            raise DataError(f"{where} column {column}: the value is missing; fill or drop the row")
        if not _is_number(field) or not math.isfinite(float(field)):
            raise DataError(f"{where} column {column}: {field[:20]!r} is not a finite number")
    return [float(field) for field in fields]


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _integers_if_all(labels: list[str]) -> NDArray[Any]:
    """Labels as integers where all are, so that class 10 follows 9; else as names."""
    try:
        return np.array([int(label) for label in labels], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array(labels)


def _load_digits() -> Samples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"the {DIGITS!r} come with scikit-learn, which is not here: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return label_samples((bunch.data / 16.0).astype(np.float32), bunch.target, DIGITS)
