"""What msgspec says of an object that is not of its type, in our words.

msgspec names types of Python and never says which fields there are; a client of an HTTP API knows
JSON, and wants to hear which field, what was found there and what may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from daemon.errors import BadFieldError

_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "bytes": "bytes",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def bad_field(error: msgspec.ValidationError, kind: Any) -> BadFieldError:  # noqa: ANN401 - a type
    """The error that a client gets.

    Args:
        error: Of msgspec.
        kind: The type that was to be decoded.
    """
    text, _, path = str(error).partition(" - at ")
    if path.startswith("`key`"):
        return BadFieldError("the name of a field is not text")
    field = path.strip("`").removeprefix("$").removeprefix(".") or None
    where = "the body" if field is None else f"field '{field}'"
    if "unknown field" in text:  # the name is the client's, so it is not repeated
        fields = _struct_at(kind, field or "").__struct_fields__
        known = f"those known are {', '.join(fields)}" if fields else "it has none: leave it out"
        return BadFieldError(f"{where} has an unknown field; {known}", field=field)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        field = missing[1] if field is None else f"{field}.{missing[1]}"
        return BadFieldError(f"field '{field}' is missing", field=field)
    if "Invalid enum value" in text:  # the same
        text = "not one of the values that this field takes"
    return BadFieldError(f"{where}: {_in_our_words(text)}", field=field)


def _in_our_words(text: str) -> str:
    if not (said := re.fullmatch(r"Expected `([^`]+)`(?:, got `([^`]+)`)?(.*)", text)):
        return text
    wanted, found, bound = said.groups()
    if bound.startswith(" matching regex"):
        return "a character that does not print was found: send one line of plain text"
    if found is not None:
        return f"{_named(wanted)} is wanted, {_named(found)} was found"
    return f"{_named(wanted)}{bound} is wanted"


def _named(types: str) -> str:
    return " or ".join(_NAMES.get(name, name) for name in types.split(" | "))


def _struct_at(kind: Any, path: str) -> Any:  # noqa: ANN401 - types
    """The struct that a path such as `inputs[0].parameters` leads to."""
    for name in re.findall(r"[a-z]\w*", path):
        types = [field.type for field in msgspec.structs.fields(kind) if field.name == name]
        kind = next(iter(_structs_in(types)), kind)
    return kind


def _structs_in(types: Iterable[Any]) -> list[Any]:
    found = []
    for each in types:
        if parts := get_args(each):
            found += _structs_in(parts)
        elif isinstance(each, type) and issubclass(each, msgspec.Struct):
            found.append(each)
    return found
