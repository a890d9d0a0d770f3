"""Decode what clients send: strict, typed, and never allocating for a size that is only claimed.

A sample's features come as `x`, flat or nested in the model's shape. They are kept as uint8 where
every value is a whole number of 0..255 (images, at a quarter of the space), else as float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.errors import (
    BadFieldError,
    BadJsonError,
    BadShapeError,
    NotFiniteError,
    RequestError,
    TooLargeError,
)
from models import ModelSpec

BATCH_LIMIT = 256
BODY_LIMIT_BYTES = 1 << 20
STREAM_LIMIT_LINES = 10_000
STREAM_LIMIT_BYTES = 8 << 20
OWN_ID_PREFIX = "s-"  # the store names samples that came without an id

_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._:-]{1,64}\Z")]
_Source = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Label = (
    Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
    | Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
)
_T = TypeVar("_T")

# Numbers nested as deep as a sample has axes; a flat list is always welcome.
_NESTED: list[Any] = [list[float], list[list[float]], list[list[list[float]]]]
_NESTED_DECODERS = [msgspec.json.Decoder(kind) for kind in _NESTED]


@dataclass(frozen=True)
class Sample:
    """One sample on its way to the store.

    Args:
        features: Little-endian bytes of the features.
        dtype: `uint8` or `float32`.
        label: As the client gave it; None: not known yet.
        id: The client's own id; None: the store makes one.
        source: Which sensor or client it came from.
        ts: The client's own time stamp, a note and never an order.
    """

    features: bytes
    dtype: str
    label: int | str | None
    id: str | None
    source: str
    ts: str | None


class SampleBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON form of one sample."""

    x: msgspec.Raw
    label: _Label | None = None
    id: _Id | None = None
    source: _Source | None = None
    ts: float | Annotated[str, msgspec.Meta(max_length=64)] | None = None


class _SampleBatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    samples: list[msgspec.Raw]
    source: _Source | None = None


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    x: msgspec.Raw


class _PredictBatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    samples: list[_PredictBody]


class LabelBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /samples/{id}/label`."""

    label: _Label
    replace: bool = False


class TrainBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """JSON body of `POST /train`; every field may be absent."""

    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "operator"


class _BatchProbe(msgspec.Struct):
    """Tells one sample from a batch before the strict decoder reads it."""

    samples: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def decode_json(body: bytes, kind: type[_T]) -> _T:
    """A typed object from JSON.

    Raises:
        BadJsonError: Not JSON.
        BadFieldError: JSON, but not of this type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _bad_field(error, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadJsonError("the body is not valid JSON (NaN and Infinity are not JSON)") from None


def _bad_field(error: msgspec.ValidationError, kind: type[Any]) -> BadFieldError:
    text, _, path = str(error).partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".") or None
    if "unknown field" in text:  # the name is the client's, so it is not repeated
        known = ", ".join(kind.__struct_fields__)
        return BadFieldError(f"unknown field; known fields: {known}", field=field)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        field = missing[1] if field is None else f"{field}.{missing[1]}"
        return BadFieldError(f"field '{field}' is missing", field=field)
    if "regex" in text:
        text = "an id is 1 to 64 characters of A-Z a-z 0-9 . _ : -"
    where = f"field '{field}': " if field else ""
    return BadFieldError(where + text, field=field)


def decode_features(raw: msgspec.Raw, spec: ModelSpec) -> NDArray[np.float32]:
    """The numbers of one sample.

    Args:
        raw: JSON text of a flat or nested list.
        spec: The model whose input shape is needed.

    Returns:
        float32 `[*input_shape]`.

    Raises:
        BadFieldError: Not a list of numbers.
        BadShapeError: Neither flat with the right count nor nested in the right shape.
        NotFiniteError: A number does not fit float32.
    """
    text = bytes(raw)
    depth = text[: len(text) - len(text.lstrip(b"[ \t\r\n"))].count(b"[")
    wanted = f"the model needs {spec.features} numbers, flat or of shape {[*spec.input_shape]}"
    if depth == 0:
        raise BadFieldError(f"field 'x' is not a list of numbers; {wanted}", field="x")
    if depth not in (1, len(spec.input_shape)):
        raise BadShapeError(f"field 'x' is nested {depth} deep; {wanted}", field="x")
    try:
        numbers = _NESTED_DECODERS[depth - 1].decode(text)
        with np.errstate(over="ignore"):
            x = np.array(numbers, dtype=np.float32)
    except msgspec.ValidationError as error:
        if "out of range" in str(error):
            raise NotFiniteError("field 'x' holds a number too large", field="x") from None
        raise BadFieldError(f"field 'x' is not a list of numbers; {wanted}", field="x") from None
    except ValueError:
        raise BadShapeError(f"field 'x' is ragged; {wanted}", field="x") from None
    if x.shape not in (spec.input_shape, (spec.features,)):
        raise BadShapeError(f"field 'x' has shape {[*x.shape]}; {wanted}", field="x")
    if not np.isfinite(x).all():
        raise NotFiniteError("field 'x' holds a number too large for float32", field="x")
    return x.reshape(spec.input_shape)


def pack_features(x: NDArray[np.float32]) -> tuple[bytes, str]:
    """The bytes and dtype that a sample is stored as; `unpack_features` gives `x` back exactly."""
    small = x.astype(np.uint8) if x.min() >= 0 and x.max() <= 255 else None
    if small is not None and np.array_equal(small, x) and not np.signbit(x).any():
        return small.tobytes(), "uint8"
    return x.astype("<f4").tobytes(), "float32"


def unpack_features(features: bytes, dtype: str, spec: ModelSpec) -> NDArray[np.float32]:
    """The inverse of `pack_features`, float32 `[*input_shape]`."""
    stored = np.frombuffer(features, dtype="<f4" if dtype == "float32" else np.uint8)
    return stored.astype(np.float32).reshape(spec.input_shape)


def decode_sample(body: bytes, spec: ModelSpec, source: str) -> Sample:
    """One sample from its JSON object.

    Args:
        body: The JSON text.
        spec: The model it is for.
        source: Who sent it, unless the sample says so itself.

    Raises:
        RequestError: It cannot be accepted.
    """
    fields = decode_json(body, SampleBody)
    if fields.id is not None and fields.id.startswith(OWN_ID_PREFIX):
        raise BadFieldError(
            f"field 'id': ids that begin with {OWN_ID_PREFIX!r} are the store's own", field="id"
        )
    features, dtype = pack_features(decode_features(fields.x, spec))
    ts = None if fields.ts is None else str(fields.ts)
    return Sample(features, dtype, fields.label, fields.id, fields.source or source, ts)


@dataclass(frozen=True)
class SampleRequest:
    """What a `POST /samples` body holds.

    Args:
        entries: For each sample in order, the sample or why it was refused.
        single: The body was one bare sample, so a refusal is the answer to the request.
    """

    entries: list[Sample | RequestError]
    single: bool


def decode_sample_request(body: bytes, spec: ModelSpec, *, stream: bool) -> SampleRequest:
    """The samples of a request body.

    Args:
        body: One JSON object, `{"samples": [...]}`, or NDJSON.
        spec: The model they are for.
        stream: The body is NDJSON.

    Raises:
        RequestError: The body as a whole cannot be read, or holds too many samples.
    """
    if stream:
        lines = [line for line in body.split(b"\n") if line.strip()]
        return SampleRequest(_decode_each(lines, spec, "", STREAM_LIMIT_LINES), single=False)
    if decode_json(body, _BatchProbe).samples is msgspec.UNSET:
        return SampleRequest([decode_sample(body, spec, "")], single=True)
    batch = decode_json(body, _SampleBatchBody)
    texts = [bytes(raw) for raw in batch.samples]
    return SampleRequest(_decode_each(texts, spec, batch.source or "", BATCH_LIMIT), single=False)


def _decode_each(
    texts: list[bytes], spec: ModelSpec, source: str, limit: int
) -> list[Sample | RequestError]:
    _check_count(len(texts), limit)
    entries: list[Sample | RequestError] = []
    for text in texts:
        try:
            entries.append(decode_sample(text, spec, source))
        except RequestError as error:
            entries.append(error)
    return entries


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise BadFieldError("the request holds no sample", field="samples")
    if count > limit:
        raise TooLargeError(f"{count} samples in one request, at most {limit} fit: send several")


def decode_predict_request(body: bytes, spec: ModelSpec) -> tuple[NDArray[np.float32], bool]:
    """The inputs of a `POST /predict` body.

    Returns:
        float32 `[batch, *input_shape]`, and whether the body was one bare sample.

    Raises:
        RequestError: The body cannot be answered.
    """
    if decode_json(body, _BatchProbe).samples is msgspec.UNSET:
        return decode_features(decode_json(body, _PredictBody).x, spec)[np.newaxis], True
    samples = decode_json(body, _PredictBatchBody).samples
    _check_count(len(samples), BATCH_LIMIT)
    rows = []
    for index, sample in enumerate(samples):
        try:
            rows.append(decode_features(sample.x, spec))
        except RequestError as error:
            field = f"samples[{index}].x"
            raise type(error)(str(error).replace("'x'", f"'{field}'"), field=field) from None
    return np.stack(rows), False
