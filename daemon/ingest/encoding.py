"""JSON and MessagePack: two ways to write the same objects, both decoded by msgspec.

What is not yet needed stays raw, so that nothing is built for a field that is refused. msgspec
allocates for a claimed length only as far as bytes are there, and refuses NaN in JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from daemon.errors import BadBinaryError, BadJsonError, RequestError
from daemon.ingest.field_errors import bad_field

T = TypeVar("T")
AXES_MAX = 4  # a batch of images


@dataclass(frozen=True)
class Encoding:
    """One way to write objects.

    Args:
        open_decoder: A decoder for a type.
        malformed: The error for a body that is not written so.
        says: Its message.
        depth: How deep a list of numbers is nested, from its first bytes; 0: no list.
        count: How long a list is, from its first bytes; 0: they do not say.
        holds_bytes: Whether a value, from its first byte, is a run of raw bytes.
    """

    open_decoder: Callable[[Any], Any]
    malformed: type[RequestError]
    says: str
    depth: Callable[[bytes], int]
    count: Callable[[bytes], int]
    holds_bytes: Callable[[bytes], bool]

    def decode(self, body: bytes, kind: type[T]) -> T:
        """A typed object.

        Raises:
            RequestError: Malformed, or not of this type.
        """
        try:
            decoded: T = self.decoder(kind).decode(body)
        except msgspec.ValidationError as error:
            raise bad_field(error, kind) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self.malformed(self.says) from None
        return decoded

    def decoder(self, kind: Any) -> Any:  # noqa: ANN401 - msgspec's two decoders share no type
        """The decoder for a type, made once."""
        return _decoder(self.open_decoder, kind)


@functools.cache
def _decoder(open_decoder: Callable[[Any], Any], kind: Any) -> Any:  # noqa: ANN401 - likewise
    return open_decoder(kind)


def _json_depth(text: bytes) -> int:
    return text[: len(text) - len(text.lstrip(b"[ \t\r\n"))].count(b"[")


def _message_pack_depth(text: bytes) -> int:
    depth = at = 0
    while depth <= AXES_MAX and (width := _head_width(text[at : at + 1])):
        depth += 1
        if _message_pack_count(text[at : at + width]) == 0:
            break
        at += width
    return depth


def _message_pack_count(text: bytes) -> int:
    width = _head_width(text)
    return text[0] - 0x90 if width == 1 else int.from_bytes(text[1:width], "big")


def _head_width(text: bytes) -> int:
    """Bytes before a list's first element; 0: no list."""
    if not text:
        return 0
    return 1 if 0x90 <= text[0] <= 0x9F else {0xDC: 3, 0xDD: 5}.get(text[0], 0)


JSON = Encoding(
    msgspec.json.Decoder,
    BadJsonError,
    "the body is not valid JSON (NaN and Infinity are not JSON)",
    _json_depth,
    lambda text: 0,
    lambda text: False,
)
MESSAGE_PACK = Encoding(
    msgspec.msgpack.Decoder,
    BadBinaryError,
    "the body is not valid MessagePack: it is cut short, or goes on after its end",
    _message_pack_depth,
    _message_pack_count,
    lambda text: text[0] in {0xC4, 0xC5, 0xC6},
)


def decode_json(body: bytes, kind: type[T]) -> T:
    """A typed object from JSON.

    Raises:
        BadJsonError: Not JSON.
        BadFieldError: JSON, but not of this type.
    """
    return JSON.decode(body, kind)
