"""Labelled data from the layouts that people already have, as arrays.

| given | layout |
| --- | --- |
| a folder with `train-images-idx3-ubyte[.gz]` | IDX, as MNIST comes; `t10k-*` is its test set |
| any other folder, or a `.zip` | ImageFolder: `<class>/<any name>.<jpg, png, ...>` |
| the word `digits` | scikit-learn's 1,797 digits of 8x8 pixels, as rows of 64 numbers |
| the word `digit-images` | the same as images of one channel, for conv networks |

Pixels stay bytes until a batch of them is taken. Files are not trusted: what a header promises is
compared with what the file holds before memory is asked for.

The layout that needs more than a page lives beside this file: `benchmarks/images.py`.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import DataError, Samples, label_samples

DIGITS = "digits"
DIGIT_IMAGES = "digit-images"
# What time and memory are measured on where no data are given; nothing to be learned.
MADE_UP = "made-up"
_CHUNK_BYTES = 1 << 20
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


@dataclasses.dataclass(frozen=True)
class Sources:
    """The data of a run, loaded once; every seed splits it anew.

    Args:
        train: What `--data` holds for training.
        test: The test set; None: a fifth of `train` is held out for each seed.
    """

    train: Samples
    test: Samples | None

    def split(self, *, seed: int, limit: int | None = None) -> Split:
        """Training and test samples of one seed.

        Args:
            seed: Draws the held-out fifth, and the samples that `limit` keeps.
            limit: Most training samples kept; None: all. The test set is never cut.

        Raises:
            DataError: There are too few samples to hold a fifth out.
        """
        random = np.random.default_rng(seed)
        train, test = self.train, self.test
        if test is None:
            train, test = hold_out(train, random)
        if limit is not None and limit < len(train):
            train = train.take(np.sort(random.permutation(len(train))[:limit]))
        return Split(train, test, self.test is None)


def load_sources(data: str, test: str | None = None) -> Sources:
    """Load training and test samples.

    Args:
        data: Path, or a word of the table above.
        test: Path of the test set; None: the `t10k` files of an IDX folder, else none.

    Raises:
        DataError: A file is missing, damaged, or not of a known layout, or the two sets differ in
            shape or classes.
    """
    train = load(data)
    if len(train.classes) < 2:
        raise DataError(f"{data}: all samples are of class {train.classes[0]!r}; two are needed")
    if test is None and not has_idx(data, "t10k"):
        return Sources(train, None)
    asked = load(data if test is None else test, prefer_test=True)
    if asked.x.shape[1:] != train.x.shape[1:]:
        raise DataError(
            f"training samples have shape {[*train.x.shape[1:]]}, "
            f"test samples {[*asked.x.shape[1:]]}: both need the same"
        )
    return Sources(train, asked.with_classes(train.classes))


def made_up(shape: tuple[int, ...], classes: int, samples: int) -> Sources:
    """Random bytes and labels, the same ones at every call; a few of them are the test set.

    Args:
        shape: Of one sample.
        classes: Different labels; all of them come up.
        samples: To learn from; at least as many as classes.
    """
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (samples, *shape)).astype(np.uint8)
    train = label_samples(x, np.arange(samples) % classes, MADE_UP)
    return Sources(train, train.take(np.arange(classes)))


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
        data: Path, or a word of the table above.
        prefer_test: Of an IDX folder, take the `t10k` files where it has them.

    Raises:
        DataError: Nothing is there, it is damaged, or its layout is not known.
    """
    if data in (DIGITS, DIGIT_IMAGES):
        return _load_digits(as_images=data == DIGIT_IMAGES)
    path = Path(data)
    kind = path.suffix.lower()
    if path.is_dir():
        for part in ("t10k", "train") if prefer_test else ("train",):
            if has_idx(data, part):
                return _load_idx(path, part)
    if path.is_dir() or (path.is_file() and kind == ".zip"):
        from benchmarks.images import load_image_folder

        return load_image_folder(path)
    found = f"a file ending in {kind!r}" if path.is_file() else "nothing"
    raise DataError(
        f"{data}: found {found}; wanted an IDX folder, an ImageFolder folder or .zip, or the word "
        f"{DIGITS!r} or {DIGIT_IMAGES!r}"
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


def _load_digits(*, as_images: bool) -> Samples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"the {DIGITS!r} come with scikit-learn, which is not here: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    rows = (bunch.data / 16.0).astype(np.float32)
    if as_images:
        return label_samples(rows.reshape(-1, 1, 8, 8), bunch.target, DIGIT_IMAGES)
    return label_samples(rows, bunch.target, DIGITS)
