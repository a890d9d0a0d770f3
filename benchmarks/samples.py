"""Samples in memory: features as they came, and labels as places in a list of class names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import DataError


@dataclasses.dataclass(frozen=True)
class Samples:
    """Labelled samples.

    Args:
        x: `[n, *shape]`, uint8 where bytes were read (a quarter of the memory), else float32.
        labels: int64 `[n]`, places in `classes`.
        classes: Name of each class.
    """

    x: NDArray[Any]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The samples at `rows`, int64 `[m]`; copied, classes as they were."""
        return Samples(self.x[rows], self.labels[rows], self.classes)

    def floats(self, most: int) -> Samples:
        """Every so many-th sample, so that there are at most `most`, as float32."""
        every = slice(None, None, max(1, -(-len(self) // most)))
        return Samples(as_floats(self.x[every]), self.labels[every], self.classes)

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


def label_samples(x: NDArray[Any], labels: NDArray[Any], source: str) -> Samples:
    """Samples from arrays.

    Args:
        x: uint8 or float32 `[n, *shape]`.
        labels: Integers or strings `[n]`; classes are their distinct values, in order.
        source: Where they came from, for messages.

    Raises:
        DataError: Counts differ, or nothing is there.
    """
    if len(x) != len(labels):
        raise DataError(f"{source}: {len(x)} samples and {len(labels)} labels; wanted as many")
    if x.size == 0:
        raise DataError(f"{source}: x has shape {[*x.shape]}; wanted none of its sizes to be zero")
    names, places = np.unique(labels, return_inverse=True)
    return Samples(x, places.astype(np.int64), tuple(str(name) for name in names))


def as_floats(x: NDArray[Any]) -> NDArray[np.float32]:
    """Bytes as float32 in 0..1 (divided by 255); float32 as it is, not copied."""
    floats: NDArray[np.float32] = (
        np.divide(x, np.float32(255), dtype=np.float32)
        if x.dtype == np.uint8
        else x.astype(np.float32, copy=False)
    )
    return floats
