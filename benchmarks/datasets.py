"""Labelled data from the layouts that people already have, as arrays.

| given | layout |
| --- | --- |
| a path | one of `daemon/datasets/layouts.py`; of an IDX folder, `t10k-*` is the test set |
| the word `digits` | scikit-learn's 1,797 digits of 8x8 pixels, as rows of 64 numbers |
| the word `digit-images` | the same as images of one channel, for conv networks |

Pixels stay bytes until a batch of them is taken. All images must have one size; they become RGB, or
one grey channel where every image is grey.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import Samples, label_samples
from daemon.datasets.idx import PARTS, has_idx
from daemon.datasets.image_folder import ImageFolder, as_it_is
from daemon.datasets.layouts import open_dataset
from daemon.datasets.rows import BadRow
from daemon.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS = "digits"
DIGIT_IMAGES = "digit-images"
# What time and memory are measured on where no data are given; nothing to be learned.
MADE_UP = "made-up"


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
    if test is None and not has_idx(Path(data), "t10k"):
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
    parts = PARTS[::-1] if prefer_test else PARTS[:1]
    dataset = open_dataset(path, to_array=_OneSize(), parts=parts)
    xs, labels, names = [], [], []
    for row in dataset.rows():
        if isinstance(row, BadRow):
            raise DataError(f"{data}: {row.name}: {row.why}")
        if row.label is None:
            raise DataError(f"{data}: {row.name} has no label; wanted one a sample")
        xs.append(row.x)
        labels.append(row.label)
        names.append(row.name)
    if isinstance(dataset, ImageFolder):
        # Import shuffles; which images a seed draws follows from the order of their names.
        order = sorted(range(len(names)), key=names.__getitem__)
        return label_samples(_stack([xs[i] for i in order]), np.array(labels)[order], data)
    if len({x.shape for x in xs}) > 1:
        raise DataError(f"{data}: found samples of several shapes, wanted them all alike")
    return label_samples(np.stack(xs), np.array(labels), data)


def _stack(pixels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8 `[n, channels, height, width]`; grey is repeated where others have colour."""
    channels = 1 if all(image.ndim == 2 for image in pixels) else 3
    stacked = np.empty((len(pixels), channels, *pixels[0].shape[:2]), dtype=np.uint8)
    for row, image in zip(stacked, pixels, strict=True):
        row[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return stacked


class _OneSize:
    """Lets images of the first one's size through, the others not even decoded."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        self._size = self._size or image.size
        if image.size != self._size:
            raise DataError(
                f"is {image.size[0]}x{image.size[1]}, the first image {self._size[0]}x"
                f"{self._size[1]}; scale all to one size"
            )
        return as_it_is(image)


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
