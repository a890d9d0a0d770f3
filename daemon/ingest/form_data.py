"""Pictures with their labels as a form (`multipart/form-data`), and one picture as the whole body.

Parts of a form: `image`, a PNG or JPEG file, once for each sample; `label`, not at all, once for
all, or once for each; `id`, not at all or once for each; `source`, once. Where one picture is the
body, the URL says the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from daemon.errors import BadBinaryError, BadFieldError, RequestError
from daemon.ingest.pictures import PictureDecoder
from daemon.ingest.sample import (
    BATCH_LIMIT,
    PredictRequest,
    Sample,
    SampleRequest,
    check_count,
    check_id,
    check_text,
    label_from_text,
)
from models import ModelSpec

_FIELDS = ("image", "label", "id", "source")
_PARTS_LIMIT = 3 * BATCH_LIMIT + 1


def decode_form(body: bytes, media_type: str, spec: ModelSpec) -> SampleRequest:
    """The samples of a form.

    Args:
        body: The parts.
        media_type: The whole Content-Type, which names their boundary.
        spec: The model they are for.

    Raises:
        RequestError: The form as a whole cannot be read, or holds too many pictures.
    """
    decoder = PictureDecoder(spec)
    images, texts = _parts(body, media_type)
    check_count(len(images))
    count = len(images)
    labels, ids = texts["label"], texts["id"]
    if len(labels) not in (0, 1, count):
        raise BadFieldError(
            f"{len(labels)} labels for {count} pictures: none, one, or one for each",
            field="label",
        )
    if len(ids) not in (0, count):
        raise BadFieldError(
            f"{len(ids)} ids for {count} pictures: none, or one for each", field="id"
        )
    if len(texts["source"]) > 1:
        raise BadFieldError("field 'source' is given more than once", field="source")
    source = check_text(texts["source"][0], "source") if texts["source"] else ""
    each_label = labels * count if len(labels) == 1 else labels or [""] * count
    entries: list[Sample | RequestError] = []
    for data, label, own_id in zip(images, each_label, ids or [""] * count, strict=True):
        try:
            entries.append(_sample(decoder, data, label, own_id, source))
        except RequestError as error:
            entries.append(error)
    if count == 1 and isinstance(entries[0], RequestError):
        raise entries[0]
    return SampleRequest(entries, single=count == 1)


def decode_picture(body: bytes, query: Mapping[str, str], spec: ModelSpec) -> SampleRequest:
    """The one sample of a body that is a picture.

    Args:
        body: The file's content.
        query: `label`, `id` and `source`, where they are given.
        spec: The model it is for.

    Raises:
        RequestError: It cannot be accepted.
    """
    _check_known(query, ("label", "id", "source"))
    source = check_text(query["source"], "source") if "source" in query else ""
    label, own_id = query.get("label", ""), query.get("id", "")
    return SampleRequest([_sample(PictureDecoder(spec), body, label, own_id, source)], single=True)


def decode_predict_picture(
    body: bytes, query: Mapping[str, str], spec: ModelSpec
) -> PredictRequest:
    """The input of a body that is a picture; the URL may say `keep=true`.

    Raises:
        RequestError: It cannot be answered.
    """
    _check_known(query, ("keep",))
    keep = {"true": True, "false": False}.get(query.get("keep", ""))
    if keep is None and "keep" in query:
        raise BadFieldError("parameter 'keep' is true or false", field="keep")
    x = PictureDecoder(spec).decode(body, "image").astype(np.float32)
    return PredictRequest(x.reshape(1, *spec.input_shape), single=True, keep=keep)


def _sample(decoder: PictureDecoder, data: bytes, label: str, own_id: str, source: str) -> Sample:
    named = label_from_text(label) if label else None
    checked = check_id(own_id) if own_id else None
    return Sample(decoder.decode(data, "image").tobytes(), "uint8", named, checked, source, None)


def _check_known(query: Mapping[str, str], known: tuple[str, ...]) -> None:
    if not query.keys() <= set(known):
        raise BadFieldError(f"unknown parameter; known: {', '.join(known)}")


def _parts(body: bytes, media_type: str) -> tuple[list[bytes], dict[str, list[str]]]:
    """The pictures, and the texts under each name."""
    images: list[bytes] = []
    texts: dict[str, list[str]] = {"label": [], "id": [], "source": []}
    try:
        _, options = parse_options_header(media_type)
        parser = PushMultipartParser(
            options.get("boundary", ""), max_segment_count=_PARTS_LIMIT, strict=True
        )
        name: str = ""
        content: list[bytes] = []
        with parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    name, content = _name(event), []
                elif event is not None:
                    content.append(event)
                elif name == "image":
                    images.append(b"".join(content))
                else:
                    texts[name].append(_text(b"".join(content), name))
    except MultipartError:
        raise BadBinaryError(
            "the body is not valid multipart/form-data: it is cut short, has no boundary, or "
            f"more than {_PARTS_LIMIT} parts"
        ) from None
    return images, texts


def _name(segment: MultipartSegment) -> str:
    name = str(segment.name)
    if name not in _FIELDS:
        raise BadFieldError(f"unknown part; known: {', '.join(_FIELDS)}")
    return name


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadFieldError(f"field '{name}' is not UTF-8", field=name) from None
