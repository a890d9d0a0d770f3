"""Which forms samples and predictions come in, by content type, and how large each may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from daemon.errors import ContentTypeError
from daemon.ingest.encoding import JSON, MESSAGE_PACK
from daemon.ingest.form_data import decode_form, decode_picture, decode_predict_picture
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.ingest.objects import decode_lines, decode_objects, decode_predict_objects
from daemon.ingest.sample import PredictRequest, SampleRequest
from daemon.ingest.tensors import decode_predict_tensors, decode_tensors
from models import ModelSpec

JSON_TYPE = "application/json"
JSON_LIMIT_BYTES = 1 << 20
LARGE_LIMIT_BYTES = 8 << 20
# Where decoding takes longer than going to a thread and back.
_TEXT_INLINE_BYTES = 16 << 10
_BINARY_INLINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Payload:
    """What a client sent, apart from the kind of its content.

    Args:
        body: All of it.
        media_type: The whole Content-Type.
        json_length: The header that says how much of a binary body is JSON.
        query: Parameters of the URL.
    """

    body: bytes
    media_type: str = ""
    json_length: str | None = None
    query: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Form:
    """How one content type is read.

    Args:
        limit_bytes: Longest body.
        inline_bytes: Longest body that is decoded on the event loop.
        samples: The samples of a body.
        inputs: What is to be predicted.
        alone: One request is decoded at a time, since one may need much memory.
    """

    limit_bytes: int
    inline_bytes: int
    samples: Callable[[Payload, ModelSpec, KeptPredictions], SampleRequest]
    inputs: Callable[[Payload, ModelSpec], PredictRequest]
    alone: bool = False


def _not_read(sent: Payload, spec: ModelSpec) -> PredictRequest:
    raise ContentTypeError("POST /predict does not read this form")


_OBJECT = Form(
    JSON_LIMIT_BYTES,
    _TEXT_INLINE_BYTES,
    lambda sent, spec, kept: decode_objects(sent.body, spec, kept, JSON),
    lambda sent, spec: decode_predict_objects(sent.body, spec, JSON),
)
_LINES = Form(
    LARGE_LIMIT_BYTES,
    _TEXT_INLINE_BYTES,
    lambda sent, spec, kept: decode_lines(sent.body, spec, kept),
    _not_read,
)
_MESSAGE_PACK = Form(
    LARGE_LIMIT_BYTES,
    _TEXT_INLINE_BYTES,
    lambda sent, spec, kept: decode_objects(sent.body, spec, kept, MESSAGE_PACK),
    lambda sent, spec: decode_predict_objects(sent.body, spec, MESSAGE_PACK),
)
_TENSORS = Form(
    LARGE_LIMIT_BYTES,
    _BINARY_INLINE_BYTES,
    lambda sent, spec, kept: decode_tensors(sent.body, sent.json_length, spec),
    lambda sent, spec: decode_predict_tensors(sent.body, sent.json_length, spec),
)
_FORM_DATA = Form(
    LARGE_LIMIT_BYTES,
    0,
    lambda sent, spec, kept: decode_form(sent.body, sent.media_type, spec),
    _not_read,
    alone=True,
)
_PICTURE = Form(
    LARGE_LIMIT_BYTES,
    0,
    lambda sent, spec, kept: decode_picture(sent.body, sent.query or {}, spec),
    lambda sent, spec: decode_predict_picture(sent.body, sent.query or {}, spec),
    alone=True,
)

FORMS = {
    JSON_TYPE: _OBJECT,
    "application/x-ndjson": _LINES,
    "application/octet-stream": _TENSORS,
    "application/msgpack": _MESSAGE_PACK,
    "application/x-msgpack": _MESSAGE_PACK,
    "multipart/form-data": _FORM_DATA,
    "image/png": _PICTURE,
    "image/jpeg": _PICTURE,
}
SAMPLE_TYPES = tuple(FORMS)
PREDICT_TYPES = tuple(kind for kind, form in FORMS.items() if form.inputs is not _not_read)
