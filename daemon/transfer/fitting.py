"""From the shape that a data set has to the shape that the model takes, or why not.

Only what changes no meaning is done: an axis of one channel comes or goes, channels move to the
front, a flat row takes the model's shape, an array becomes flat. Images are also scaled, and become
grey or coloured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from daemon.datasets import BadRow, Dataset, Row
from daemon.datasets.idx import IdxPair
from daemon.datasets.image_folder import ImageFolder, as_it_is
from daemon.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Fit: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
_TALK = "input_shape in the daemon's [model], or other data"


def fit_rows(found: tuple[int, ...], wanted: tuple[int, ...]) -> Fit:
    """What makes an array of one shape one of another.

    Args:
        found: Shape of one sample in the data set.
        wanted: Shape of one sample for the model.

    Raises:
        DataError: They do not belong together.
    """
    if found == wanted:
        return lambda x: x
    same = math.prod(found) == math.prod(wanted)
    plain = tuple(size for size in found if size != 1)
    if same and (
        len(found) == 1 or len(wanted) == 1 or plain == tuple(size for size in wanted if size != 1)
    ):
        return lambda x: x.reshape(wanted)
    if len(found) == len(wanted) == 3 and (found[2], *found[:2]) == wanted:
        return lambda x: x.transpose(2, 0, 1)
    raise DataError(
        f"found samples of shape {[*found]}, the model needs {[*wanted]}: wanted {_TALK}"
    )


def fit_dataset(dataset: Dataset, wanted: tuple[int, ...]) -> tuple[Fit, str | None]:
    """How the rows of a data set get the model's shape, and what a user is told of it.

    Raises:
        DataError: They cannot.
    """
    found = dataset.shape
    if found is None:  # each row has its own; if the first does not fit, none is tried
        fit_rows(_first(dataset).x.shape, wanted)
        return lambda x: fit_rows(x.shape, wanted)(x), _image_note(dataset, wanted)
    try:
        fit = fit_rows(found, wanted)
    except DataError:
        if not isinstance(dataset, IdxPair) or not _is_image(wanted):
            raise
        return _scaled(image_to_array(wanted)), _image_note(dataset, wanted)
    return fit, None if found == wanted else f"shape {[*found]} becomes {[*wanted]}"


def image_to_array(wanted: tuple[int, ...]) -> Callable[[Image], NDArray[np.uint8]]:
    """What makes an image an array for the model, uint8 `[channels, height, width]`.

    For a model of images it is fitted as one that is posted; for another it stays as it is.
    """

    def to_array(image: Image) -> NDArray[np.uint8]:
        from daemon.ingest.pictures import fit_picture

        if len(wanted) == 3 and _is_image(wanted):
            return fit_picture(image, wanted)
        return _channels_first(as_it_is(image))

    return to_array


def _first(dataset: Dataset) -> Row:
    refused: BadRow | None = None
    for row in dataset.rows():
        if isinstance(row, Row):
            return row
        refused = refused or row
    why = f", first {refused.name}: {refused.why}" if refused else ""
    raise DataError(f"{dataset.path}: none of its rows can be read{why}")


def _scaled(to_array: Callable[[Image], NDArray[np.uint8]]) -> Fit:
    from PIL import Image as Images

    return lambda x: to_array(Images.fromarray(x[0]))


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[height, width]` or `[height, width, 3]` as `[channels, height, width]`."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3)


def _image_note(dataset: Dataset, wanted: tuple[int, ...]) -> str | None:
    if not isinstance(dataset, ImageFolder | IdxPair) or not _is_image(wanted):
        return None
    channels, height, width = wanted
    kind = "grey" if channels == 1 else "coloured"
    return f"images become {kind} and {width}x{height} pixels, scaled where they have another size"
