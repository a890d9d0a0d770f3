"""Samples as binary tensors, in the layout of the Open Inference Protocol's binary extension.

The header `Inference-Header-Content-Length: N` says where the JSON ends; the tensors follow it in
order, little-endian and row-major, without padding:

    {"inputs": [{"name": "x", "shape": [256, 784], "datatype": "UINT8",
                 "parameters": {"binary_data_size": 200704}},
                {"name": "label", "shape": [256], "datatype": "INT64",
                 "parameters": {"binary_data_size": 2048}}],
     "parameters": {"source": "cam0"}}  + 202752 bytes

`label` (whole numbers, or BYTES: a uint32 length and UTF-8 for each) and `id` (BYTES) may be
absent.
Bytes are neither copied nor looked at one by one: a sample is a slice of the body.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.errors import (
    BadBinaryError,
    BadFieldError,
    BadHeaderError,
    NotFiniteError,
    RequestError,
)
from daemon.ingest.encoding import decode_json
from daemon.ingest.features import DATATYPES, count_rows, rows_from_bytes
from daemon.ingest.sample import (
    PredictRequest,
    Sample,
    SampleRequest,
    check_count,
    check_finite,
    check_id,
    check_label,
    check_text,
    pack_rows,
)
from models import ModelSpec

LENGTH_HEADER = "Inference-Header-Content-Length"
_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _TensorParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    binary_data_size: _Size


class _Tensor(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=4)]
    datatype: str
    parameters: _TensorParameters


class _SampleParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    source: str | None = None


class _SampleHeader(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    inputs: Annotated[list[_Tensor], msgspec.Meta(max_length=3)]
    parameters: _SampleParameters = _SampleParameters()


class _PredictParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    keep: bool | None = None


class _PredictHeader(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    inputs: Annotated[list[_Tensor], msgspec.Meta(max_length=1)]
    parameters: _PredictParameters = _PredictParameters()


@dataclass(frozen=True)
class _Part:
    """A tensor with its bytes and its path in the header."""

    tensor: _Tensor
    raw: memoryview
    path: str


def _split(body: bytes, length: str | None, kind: type[_T]) -> tuple[_T, memoryview]:
    if length is None or re.fullmatch("[0-9]{1,9}", length) is None:
        raise BadHeaderError(
            f"header {LENGTH_HEADER} is missing or no number: it says how many bytes of JSON the "
            "body begins with"
        )
    if not 0 < int(length) <= len(body):
        raise BadHeaderError(
            f"header {LENGTH_HEADER} must be 1 to {len(body)}, the length of the body"
        )
    return decode_json(body[: int(length)], kind), memoryview(body)[int(length) :]


def _parts(inputs: list[_Tensor], rest: memoryview, known: tuple[str, ...]) -> dict[str, _Part]:
    claimed = sum(tensor.parameters.binary_data_size for tensor in inputs)
    if claimed != len(rest):
        raise BadBinaryError(
            f"the tensors' binary_data_size add up to {claimed}, {len(rest)} bytes follow the JSON"
        )
    parts: dict[str, _Part] = {}
    for index, tensor in enumerate(inputs):
        if tensor.name not in known or tensor.name in parts:
            raise BadFieldError(
                f"field 'inputs[{index}].name': a tensor is named {' or '.join(known)}, once each",
                field=f"inputs[{index}].name",
            )
        size = tensor.parameters.binary_data_size
        parts[tensor.name] = _Part(tensor, rest[:size], f"inputs[{index}]")
        rest = rest[size:]
    if "x" not in parts:
        raise BadFieldError("field 'inputs' has no tensor 'x', the features", field="inputs")
    return parts


def _rows(part: _Part, spec: ModelSpec) -> NDArray[np.uint8] | NDArray[np.float32]:
    code = DATATYPES.get(part.tensor.datatype)
    if code is None:
        raise BadFieldError(
            f"field '{part.path}.datatype' is none of {', '.join(DATATYPES)}",
            field=f"{part.path}.datatype",
        )
    rows = count_rows(part.tensor.shape, spec, f"{part.path}.shape")
    check_count(rows)
    return rows_from_bytes(part.raw, code, rows, spec, part.path)


def _texts(part: _Part, rows: int) -> list[str]:
    """The elements of a BYTES tensor: a little-endian uint32 length before each."""
    texts: list[str] = []
    at = 0
    while len(texts) < rows and at + 4 <= len(part.raw):
        end = at + 4 + int.from_bytes(part.raw[at : at + 4], "little")
        if end > len(part.raw):
            break
        try:
            texts.append(str(part.raw[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise BadBinaryError(
                f"field '{part.path}': element {len(texts)} is not UTF-8", field=part.path
            ) from None
        at = end
    if len(texts) < rows or at != len(part.raw):
        raise BadBinaryError(
            f"field '{part.path}': its bytes are not {rows} times a length and that many bytes",
            field=part.path,
        )
    return texts


def _column(part: _Part, rows: int) -> list[int] | list[str]:
    """One whole number or text a sample."""
    if part.tensor.shape not in ([rows], [rows, 1]):
        raise BadFieldError(
            f"field '{part.path}.shape' must be [{rows}], one for each sample",
            field=f"{part.path}.shape",
        )
    if part.tensor.datatype == "BYTES":
        return _texts(part, rows)
    code = DATATYPES.get(part.tensor.datatype)
    if code is None or "f" in code or part.tensor.name == "id":
        kinds = "BYTES" if part.tensor.name == "id" else "BYTES or of whole numbers, such as INT64"
        raise BadFieldError(
            f"field '{part.path}.datatype': '{part.tensor.name}' is {kinds}",
            field=f"{part.path}.datatype",
        )
    if len(part.raw) != rows * np.dtype(code).itemsize:
        raise BadBinaryError(
            f"field '{part.path}' has {len(part.raw)} bytes, its shape and data type need "
            f"{rows * np.dtype(code).itemsize}",
            field=part.path,
        )
    numbers: list[int] = np.frombuffer(part.raw, code).tolist()
    return numbers


def _checked(
    part: _Part | None, rows: int, check: Callable[..., _T]
) -> list[_T | RequestError | None]:
    """Each sample's own label or id, or why it is refused."""
    if part is None:
        return [None] * rows
    checked: list[_T | RequestError | None] = []
    for value in _column(part, rows):
        try:
            checked.append(check(value))
        except RequestError as error:
            checked.append(error)
    return checked


def decode_tensors(body: bytes, length: str | None, spec: ModelSpec) -> SampleRequest:
    """The samples of a binary body, in memory that they share with it.

    Args:
        body: JSON, then the tensors.
        length: The header that says how long the JSON is.
        spec: The model they are for.

    Raises:
        RequestError: The body as a whole cannot be read, or holds too many samples.
    """
    header, rest = _split(body, length, _SampleHeader)
    parts = _parts(header.inputs, rest, ("x", "label", "id"))
    source = header.parameters.source
    source = "" if source is None else check_text(source, "parameters.source")
    x = _rows(parts["x"], spec)
    rows = len(x)
    labels = _checked(parts.get("label"), rows, check_label)
    ids = _checked(parts.get("id"), rows, check_id)
    finite = np.asarray(np.isfinite(x).all(axis=1))
    entries: list[Sample | RequestError] = []
    for (features, dtype), label, own_id, good in zip(
        pack_rows(x), labels, ids, finite, strict=True
    ):
        if not good:
            entries.append(
                NotFiniteError("field 'x' holds a number that is not finite as float32", field="x")
            )
        elif isinstance(label, RequestError):
            entries.append(label)
        elif isinstance(own_id, RequestError):
            entries.append(own_id)
        else:
            entries.append(Sample(features, dtype, label, own_id, source, None))
    return SampleRequest(entries, single=False)


def decode_predict_tensors(body: bytes, length: str | None, spec: ModelSpec) -> PredictRequest:
    """The inputs of a binary body: one tensor `x`.

    Raises:
        RequestError: The body cannot be answered.
    """
    header, rest = _split(body, length, _PredictHeader)
    parts = _parts(header.inputs, rest, ("x",))
    x = _rows(parts["x"], spec).astype(np.float32, copy=False)
    check_finite(x, parts["x"].path)
    shape = (len(x), *spec.input_shape)
    return PredictRequest(x.reshape(shape), single=False, keep=header.parameters.keep)
