"""Samples and predictions as objects: one, `{"samples": [...]}`, or one a line (JSON only).

JSON and MessagePack carry the same objects. Features come as `x`, numbers flat or nested in the
model's shape; as raw bytes with `dtype` and `shape` (`x_b64` in JSON, `x` in MessagePack); as
`inputs`, one tensor of the Open Inference Protocol; or as `inference_id`, those of a prediction
that was kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from daemon.errors import BadFieldError, RequestError
from daemon.ingest.encoding import JSON, Encoding
from daemon.ingest.features import (
    DATATYPES,
    DTYPES,
    check_shape,
    decode_numbers,
    rows_from_bytes,
)
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.sample import (
    TEXT_LIMIT,
    PredictRequest,
    Sample,
    SampleRequest,
    check_count,
    check_finite,
    check_id,
    check_label,
    check_text,
    pack_features,
)
from models import ModelSpec

STREAM_LIMIT_LINES = 10_000
_HEAD_BYTES = 5  # of the longest head of a list in MessagePack

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Shape = Annotated[list[_Size], msgspec.Meta(max_length=4)]


class _InputTensor(msgspec.Struct, frozen=True):
    """One tensor of an infer request; what else it says is ignored, as that protocol wants."""

    shape: _Shape
    datatype: str
    data: msgspec.Raw


class _Features(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    x: msgspec.Raw | UnsetType = UNSET
    x_b64: bytes | UnsetType = UNSET
    dtype: str | UnsetType = UNSET
    shape: _Shape | UnsetType = UNSET
    inputs: Annotated[list[_InputTensor], msgspec.Meta(max_length=1)] | UnsetType = UNSET


class _SampleBody(_Features, forbid_unknown_fields=True, frozen=True, kw_only=True):
    label: int | str | None = None
    id: str | None = None
    inference_id: str | UnsetType = UNSET
    source: str | None = None
    ts: int | float | Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)] | None = None


class _SampleBatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    samples: list[msgspec.Raw]
    source: str | None = None


class _PredictBody(_Features, forbid_unknown_fields=True, frozen=True, kw_only=True):
    keep: bool | None = None


class _PredictBatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    samples: list[_Features]
    keep: bool | None = None


class _BatchProbe(msgspec.Struct):
    """Tells one sample from a batch before the strict decoder reads it."""

    samples: msgspec.Raw | UnsetType = UNSET


@dataclass(frozen=True)
class _Reader:
    spec: ModelSpec
    kept: KeptPredictions
    encoding: Encoding

    def sample(self, body: bytes, source: str) -> Sample:
        fields = self.encoding.decode(body, _SampleBody)
        label = None if fields.label is None else check_label(fields.label)
        source = source if fields.source is None else check_text(fields.source, "source")
        ts = None if fields.ts is None else _time_stamp(fields.ts)
        if fields.inference_id is not UNSET:
            return self._labelled(fields, fields.inference_id, label, source, ts)
        own_id = None if fields.id is None else check_id(fields.id)
        features, dtype = pack_features(read_features(fields, self.spec, self.encoding))
        return Sample(features, dtype, label, own_id, source, ts)

    def _labelled(
        self,
        fields: _SampleBody,
        prediction_id: str,
        label: int | str | None,
        source: str,
        ts: str | None,
    ) -> Sample:
        """The sample that a kept prediction becomes; its id is the prediction's."""
        for name in ("x", "x_b64", "dtype", "shape", "inputs"):
            if getattr(fields, name) is not UNSET:
                raise BadFieldError(
                    f"field '{name}': with 'inference_id' the features are the prediction's",
                    field=name,
                )
        if fields.id is not None:
            raise BadFieldError(
                "field 'id': with 'inference_id' that is the sample's id", field="id"
            )
        if label is None:
            raise BadFieldError("field 'label' is missing: 'inference_id' needs it", field="label")
        features, dtype = self.kept.find(prediction_id)
        return Sample(features, dtype, label, prediction_id, source, ts, predicted=True)

    def each(self, texts: list[bytes], source: str) -> list[Sample | RequestError]:
        entries: list[Sample | RequestError] = []
        for text in texts:
            try:
                entries.append(self.sample(text, source))
            except RequestError as error:
                entries.append(error)
        return entries


def _time_stamp(ts: int | float | str) -> str:
    if isinstance(ts, float) and not math.isfinite(ts):
        raise BadFieldError("field 'ts' is not a finite number", field="ts")
    return str(ts)


def read_features(
    fields: _Features, spec: ModelSpec, encoding: Encoding
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """The features of one sample, `[*input_shape]`, finite.

    Args:
        fields: Where they are, in one of several ways.
        spec: The model.
        encoding: What the body was encoded in.

    Raises:
        RequestError: They cannot be accepted.
    """
    given = [name for name in ("x", "x_b64", "inputs") if getattr(fields, name) is not UNSET]
    if not given:
        raise BadFieldError("field 'x' is missing", field="x")
    if len(given) > 1:
        raise BadFieldError(f"features come once, not as {' and '.join(given)}", field=given[1])
    if fields.inputs is not UNSET:
        return _from_inputs(fields.inputs, spec, encoding)
    if fields.x_b64 is not UNSET:
        return _from_bytes(fields, fields.x_b64, spec, "x_b64")
    raw = bytes(fields.x)  # type: ignore[arg-type]  # given, and none of the others
    if encoding.holds_bytes(raw):
        return _from_bytes(fields, encoding.decode(raw, bytes), spec, "x")
    if fields.dtype is not UNSET or fields.shape is not UNSET:
        raise BadFieldError("fields 'dtype' and 'shape' go with raw bytes", field="dtype")
    return decode_numbers(raw, spec.input_shape, spec, encoding, "x")


def _from_bytes(
    fields: _Features, raw: bytes, spec: ModelSpec, field: str
) -> NDArray[np.float32] | NDArray[np.uint8]:
    if fields.dtype is UNSET or fields.shape is UNSET:
        raise BadFieldError("raw bytes need the fields 'dtype' and 'shape'", field="dtype")
    code = DTYPES.get(fields.dtype)
    if code is None:
        raise BadFieldError(f"field 'dtype' is none of {', '.join(DTYPES)}", field="dtype")
    check_shape(fields.shape, spec, "shape")
    x = rows_from_bytes(raw, code, 1, spec, field).reshape(spec.input_shape)
    check_finite(x, field)
    return x


def _from_inputs(
    inputs: list[_InputTensor], spec: ModelSpec, encoding: Encoding
) -> NDArray[np.float32]:
    if len(inputs) != 1:
        raise BadFieldError("field 'inputs' holds one tensor, the features", field="inputs")
    (tensor,) = inputs
    if tensor.datatype not in DATATYPES:
        raise BadFieldError(
            f"field 'inputs[0].datatype' is none of {', '.join(DATATYPES)}",
            field="inputs[0].datatype",
        )
    check_shape(tensor.shape, spec, "inputs[0].shape")
    shape = tuple(tensor.shape)
    return decode_numbers(bytes(tensor.data), shape, spec, encoding, "inputs[0].data")


def decode_objects(
    body: bytes, spec: ModelSpec, kept: KeptPredictions, encoding: Encoding
) -> SampleRequest:
    """The samples of one object: a sample, or `{"samples": [...]}`.

    Args:
        body: The object, encoded.
        spec: The model they are for.
        kept: Predictions that a label may name.
        encoding: What the body is encoded in.

    Raises:
        RequestError: The body as a whole cannot be read, or holds too many samples.
    """
    reader = _Reader(spec, kept, encoding)
    if not _is_batch(body, encoding):
        return SampleRequest([reader.sample(body, "")], single=True)
    batch = encoding.decode(body, _SampleBatchBody)
    source = "" if batch.source is None else check_text(batch.source, "source")
    check_count(len(batch.samples))
    return SampleRequest(reader.each([bytes(raw) for raw in batch.samples], source), single=False)


def _is_batch(body: bytes, encoding: Encoding) -> bool:
    """Whether this is `{"samples": [...]}`; nothing is built for a list that says it is too long.

    Raises:
        TooLargeError: It says so.
    """
    samples = encoding.decode(body, _BatchProbe).samples
    if samples is UNSET:
        return False
    if claimed := encoding.count(bytes(memoryview(samples)[:_HEAD_BYTES])):
        check_count(claimed)
    return True


def decode_lines(body: bytes, spec: ModelSpec, kept: KeptPredictions) -> SampleRequest:
    """The samples of a stream of JSON objects, one a line.

    Raises:
        RequestError: It holds none, or too many; blank lines count for that.
    """
    if (ends := body.count(b"\n")) > STREAM_LIMIT_LINES:
        check_count(ends, STREAM_LIMIT_LINES)
    lines = [line for line in body.split(b"\n") if line.strip()]
    check_count(len(lines), STREAM_LIMIT_LINES)
    return SampleRequest(_Reader(spec, kept, JSON).each(lines, ""), single=False)


def decode_predict_objects(body: bytes, spec: ModelSpec, encoding: Encoding) -> PredictRequest:
    """The inputs of one object: `{"x": ...}`, or `{"samples": [{"x": ...}, ...]}`.

    Raises:
        RequestError: The body cannot be answered.
    """
    if not _is_batch(body, encoding):
        one = encoding.decode(body, _PredictBody)
        x = read_features(one, spec, encoding).astype(np.float32, copy=False)
        return PredictRequest(x[np.newaxis], single=True, keep=one.keep)
    batch = encoding.decode(body, _PredictBatchBody)
    check_count(len(batch.samples))
    rows = []
    for index, sample in enumerate(batch.samples):
        try:
            rows.append(read_features(sample, spec, encoding))
        except RequestError as error:
            field = f"samples[{index}].{error.field}"
            message = str(error).replace(f"'{error.field}'", f"'{field}'")
            raise type(error)(message, field=field) from None
    return PredictRequest(np.stack(rows).astype(np.float32), single=False, keep=batch.keep)
