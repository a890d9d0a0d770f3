"""A sample on its way to the store, whatever form it came in, and the checks that all forms share.

Features are kept as uint8 where every value of a sample is a whole number of 0..255 (images, at a
quarter of the space), else as float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.errors import BadFieldError, NotFiniteError, RequestError, TooLargeError
from models import ModelSpec

BATCH_LIMIT = 256
OWN_ID_PREFIX = "s-"  # the store names samples that came without an id
TEXT_LIMIT = 64
LABEL_LIMIT = 2**62

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# As a whole number is written; "007" and "-0" are names.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")

Features = bytes | memoryview


@dataclass(frozen=True)
class Sample:
    """One sample on its way to the store.

    Args:
        features: Little-endian bytes of the features; samples of one request may share memory.
        dtype: `uint8` or `float32`.
        label: As the client gave it; None: not labelled yet.
        id: The client's own id; None: the store makes one.
        source: Which sensor or client it came from.
        ts: The client's own time stamp, a note and never an order.
        predicted: Features and id are those of an earlier prediction.
    """

    features: Features
    dtype: str
    label: int | str | None
    id: str | None
    source: str
    ts: str | None
    predicted: bool = False


@dataclass(frozen=True)
class SampleRequest:
    """What a `POST /samples` body holds.

    Args:
        entries: For each sample in order, the sample or why it was refused.
        single: The body was one bare sample, so a refusal is the answer to the request.
    """

    entries: list[Sample | RequestError]
    single: bool


@dataclass(frozen=True)
class PredictRequest:
    """What a `POST /predict` body holds.

    Args:
        x: float32 `[batch, *input_shape]`.
        single: The body was one bare sample, and so is the answer.
        keep: Whether the features are to be kept for a label that comes later; None: not said.
    """

    x: NDArray[np.float32]
    single: bool
    keep: bool | None


def pack_rows(x: NDArray[np.float32] | NDArray[np.uint8]) -> list[tuple[Features, str]]:
    """The bytes and dtype that each sample of a batch is stored as, in shared memory.

    Args:
        x: `[batch, features]`, uint8 or finite float32.
    """
    if x.dtype == np.uint8:
        return [(memoryview(row), "uint8") for row in x]
    with np.errstate(invalid="ignore"):  # what is no byte becomes anything, and so is found unequal
        small = x.astype(np.uint8)
    whole = ((small == x) & ~np.signbit(x)).all(axis=1)
    wide = np.ascontiguousarray(x, "<f4").view(np.uint8)
    return [
        (memoryview(small[i]), "uint8") if whole[i] else (memoryview(wide[i]), "float32")
        for i in range(len(x))
    ]


def pack_features(x: NDArray[np.float32] | NDArray[np.uint8]) -> tuple[bytes, str]:
    """The bytes and dtype that a sample is stored as; `unpack_features` gives `x` back exactly."""
    ((features, dtype),) = pack_rows(x.reshape(1, -1))
    return bytes(features), dtype


def unpack_features(features: Features, dtype: str, spec: ModelSpec) -> NDArray[np.float32]:
    """The inverse of `pack_features`, float32 `[*input_shape]`."""
    stored = np.frombuffer(features, dtype="<f4" if dtype == "float32" else np.uint8)
    return stored.astype(np.float32).reshape(spec.input_shape)


def check_finite(x: NDArray[np.float32] | NDArray[np.uint8], field: str) -> None:
    """Raise where float32 does not hold a value.

    Raises:
        NotFiniteError: It does not.
    """
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        raise NotFiniteError(
            f"field '{field}' holds a number that is not finite as float32", field=field
        )


def check_count(count: int, limit: int = BATCH_LIMIT) -> None:
    """Raise where a request holds no sample, or too many.

    Raises:
        BadFieldError: None.
        TooLargeError: More than `limit`.
    """
    if count == 0:
        raise BadFieldError("the request holds no sample", field="samples")
    if count > limit:
        raise TooLargeError(f"{count} samples in one request, at most {limit} fit: send several")


def check_id(value: str) -> str:
    """`value`, a client's own id.

    Raises:
        BadFieldError: It cannot be one.
    """
    if _ID.fullmatch(value) is None:
        raise BadFieldError(
            "field 'id': an id is 1 to 64 characters of A-Z a-z 0-9 . _ : -", field="id"
        )
    if value.startswith(OWN_ID_PREFIX):
        raise BadFieldError(
            f"field 'id': ids that begin with {OWN_ID_PREFIX!r} are the store's own", field="id"
        )
    return value


def check_label(label: int | str) -> int | str:
    """`label`, a whole number or a name.

    Raises:
        BadFieldError: It is out of bounds.
    """
    if isinstance(label, str):
        return check_text(label, "label")
    if not -LABEL_LIMIT <= label <= LABEL_LIMIT:
        raise BadFieldError("field 'label': a whole number is at most 62 bits long", field="label")
    return label


def check_text(value: str, field: str) -> str:
    """`value`, a name that a person can read and a log line can hold.

    Raises:
        BadFieldError: It is empty, too long, begins or ends with a blank, or does not print.
    """
    if not 1 <= len(value) <= TEXT_LIMIT or value != value.strip() or not value.isprintable():
        raise BadFieldError(
            f"field '{field}': text is 1 to {TEXT_LIMIT} printable characters, none of them a "
            "blank at either end",
            field=field,
        )
    return value


def label_from_text(text: str) -> int | str:
    """A label from where everything is text (a form field, a URL): whole numbers are numbers.

    Raises:
        BadFieldError: It cannot be a label.
    """
    return check_label(int(text) if _WHOLE_NUMBER.fullmatch(text) else text)
