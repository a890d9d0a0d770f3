"""Features as numbers in a list, and as raw bytes with a data type and a shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.errors import BadBinaryError, BadFieldError, BadShapeError, NotFiniteError
from daemon.ingest.encoding import AXES_MAX, JSON, Encoding
from daemon.ingest.sample import check_finite
from models import ModelSpec

# The names of NumPy and of the Open Inference Protocol; little-endian whatever machine this is.
DTYPES = {
    "uint8": "u1",
    "int8": "i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
DATATYPES = {name.upper().replace("FLOAT", "FP"): code for name, code in DTYPES.items()}


@functools.cache
def _nested(shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a type made of others
    """Numbers nested in this shape, or ragged: no list is longer than its axis."""
    kind: Any = float
    for axis in reversed(shape):
        kind = Annotated[list[kind], msgspec.Meta(max_length=axis)]
    return kind


def wanted(spec: ModelSpec) -> str:
    """What the model takes, for an error."""
    return f"the model needs {spec.features} numbers, flat or of shape {[*spec.input_shape]}"


def decode_numbers(
    raw: bytes, shape: tuple[int, ...], spec: ModelSpec, encoding: Encoding, field: str
) -> NDArray[np.float32]:
    """The numbers of one sample.

    Args:
        raw: A flat or nested list, encoded.
        shape: How it may be nested; as many numbers as the model's shape.
        spec: The model.
        encoding: What `raw` is encoded in.
        field: Where it stands, for an error.

    Returns:
        float32 `[*input_shape]`.

    Raises:
        BadFieldError: Not a list of numbers.
        BadShapeError: Neither flat with the right count nor nested in the right shape; more numbers
            than that are not decoded.
        NotFiniteError: A number does not fit float32.
    """
    depth = encoding.depth(raw)
    need = wanted(spec)
    if depth == 0:
        raise BadFieldError(f"field '{field}' is not a list of numbers; {need}", field=field)
    if depth not in (1, len(shape)) or depth > AXES_MAX:
        raise BadShapeError(f"field '{field}' is nested {depth} deep; {need}", field=field)
    # MessagePack says how long a list is before it begins; JSON does not.
    too_many = f"field '{field}' holds more numbers than that in a list; {need}"
    if encoding is JSON and raw.count(b",") >= spec.features:
        raise BadShapeError(too_many, field=field)
    try:
        numbers = encoding.decoder(_nested(shape if depth > 1 else (spec.features,))).decode(raw)
        with np.errstate(over="ignore", invalid="ignore"):  # found when what comes out is checked
            x = np.array(numbers, dtype=np.float32)
    except msgspec.ValidationError as error:
        if "out of range" in str(error):
            raise NotFiniteError(f"field '{field}' holds a number too large", field=field) from None
        if "of length" in str(error):
            raise BadShapeError(too_many, field=field) from None
        raise BadFieldError(
            f"field '{field}' is not a list of numbers; {need}", field=field
        ) from None
    except ValueError:
        raise BadShapeError(f"field '{field}' is ragged; {need}", field=field) from None
    if x.shape not in (shape, (spec.features,)):
        raise BadShapeError(f"field '{field}' has shape {[*x.shape]}; {need}", field=field)
    check_finite(x, field)
    return x.reshape(spec.input_shape)


def check_shape(shape: Sequence[int], spec: ModelSpec, field: str) -> None:
    """Raise where a shape is not that of one sample.

    Raises:
        BadShapeError: It is neither flat nor the model's, alone or as a batch of one.
    """
    own = ((spec.features,), spec.input_shape)
    if tuple(shape) not in own and tuple(shape) not in [(1, *known) for known in own]:
        raise BadShapeError(f"field '{field}' is not this shape; {wanted(spec)}", field=field)


def count_rows(shape: Sequence[int], spec: ModelSpec, field: str) -> int:
    """How many samples a tensor of this shape holds.

    Args:
        shape: With the batch axis first.
        spec: The model.
        field: Where it stands, for an error.

    Raises:
        BadShapeError: Its other axes are neither flat nor the model's.
    """
    if not shape or tuple(shape[1:]) not in ((spec.features,), spec.input_shape):
        raise BadShapeError(
            f"field '{field}' is not [samples, {spec.features}] or "
            f"{['samples', *spec.input_shape]}".replace("'samples'", "samples"),
            field=field,
        )
    return shape[0]


def rows_from_bytes(
    raw: bytes | memoryview, code: str, rows: int, spec: ModelSpec, field: str
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Samples from raw little-endian bytes, row-major, without a copy where they are uint8.

    Args:
        raw: Exactly their bytes.
        code: NumPy's code of their data type.
        rows: How many samples.
        spec: The model.
        field: Where they stand, for an error.

    Returns:
        `[rows, features]`, uint8 or float32; a number that float32 does not hold is infinite.

    Raises:
        BadBinaryError: There are more or fewer bytes.
    """
    dtype = np.dtype(code)
    need = math.prod((rows, spec.features, dtype.itemsize))
    if len(raw) != need:
        raise BadBinaryError(
            f"field '{field}' has {len(raw)} bytes, its shape and data type need {need}",
            field=field,
        )
    x = np.frombuffer(raw, dtype).reshape(rows, spec.features)
    if dtype == np.uint8:
        return x
    with np.errstate(over="ignore", invalid="ignore"):  # found when what comes out is checked
        return x.astype(np.float32, copy=False)
