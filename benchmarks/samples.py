"""Samples in memory: float32 features, and labels as places in a list of class names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES_MAX = 3


class DataError(ValueError):
    """Data cannot be used; the message says what was found, what was wanted and what to do."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Labelled samples.

    Args:
        x: float32 `[n, *shape]`, finite; 0..1 where it came from bytes.
        labels: int64 `[n]`, places in `classes`.
        classes: Name of each class.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The samples at `rows`, int64 `[m]`; copied, classes as they were."""
        return Samples(self.x[rows], self.labels[rows], self.classes)

    def with_classes(self, classes: tuple[str, ...]) -> Samples:
        """The same samples, labels as places in another list of classes.

        Raises:
            DataError: A class in use here is not in `classes`.
        """
        used = {self.classes[index] for index in np.unique(self.labels)}
        unknown = sorted(used - set(classes))
        if unknown:
            raise DataError(
                f"test samples of class {', '.join(map(repr, unknown[:5]))} have no training "
                f"samples; trained classes: {', '.join(map(repr, classes[:20]))}"
            )
        place = {name: index for index, name in enumerate(classes)}
        moved = np.array([place.get(name, -1) for name in self.classes], dtype=np.int64)
        return Samples(self.x, moved[self.labels], classes)


def label_samples(values: NDArray[Any], labels: NDArray[Any], source: str) -> Samples:
    """Check and convert raw arrays.

    Args:
        values: Numbers `[n, ...]` with one to three axes per sample; uint8 is divided by 255.
        labels: Integers or strings `[n]`; classes are their distinct values, in order.
        source: Where they came from, for messages.

    Raises:
        DataError: Counts differ, nothing is there, or a value is not a finite number.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{source}: x is {values.dtype}; wanted real numbers")
    if not 1 <= values.ndim - 1 <= AXES_MAX or len(values) == 0 or values[0].size == 0:
        raise DataError(
            f"{source}: x has shape {[*values.shape]}; wanted samples first, then [features], "
            "[channels, length] or [channels, height, width], and none of them zero"
        )
    if len(values) != len(labels):
        raise DataError(f"{source}: {len(values)} samples and {len(labels)} labels; wanted as many")
    with np.errstate(over="ignore"):  # a value too large for float32 is reported below
        x = values.astype(np.float32)
    if values.dtype == np.uint8:
        x /= 255.0
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise DataError(
            f"{source}: sample {row} holds a value that is missing, infinite or beyond float32; "
            "fill or drop it"
        )
    names, places = np.unique(labels, return_inverse=True)
    return Samples(x, places.astype(np.int64), tuple(str(name) for name in names))
