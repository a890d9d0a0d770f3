"""What TensorRT's Python module offers in three versions, and whether a call binds there.

The dumps were made from the real wheels (names, enum values and signatures); tests/test_tensorrt_
bindings.py compares them with those again.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

VERSIONS = ("10.3", "10.16", "11.4")
HERE = Path(__file__).parent


@functools.cache
def dump(version: str) -> dict[str, Any]:
    return json.loads((HERE / f"api_{version}.json").read_text())


class Parameter(NamedTuple):
    name: str
    kind: str
    has_default: bool


def parameters(signature: str) -> list[Parameter]:
    """Of a signature line, without self."""
    inside = re.match(r"[\w.]+\((.*)\)( -> .*)?$", signature)
    assert inside, signature
    parts, depth, start = [], 0, 0
    text = inside[1] + ","
    for i, char in enumerate(text):
        depth += (char in "[({<") - (char in "])}>")
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    found = []
    for part in parts:
        name, _, rest = part.partition(":")
        kind, default, _ = rest.partition(" = ")
        found.append(Parameter(name.strip(), kind.strip(), bool(default)))
    return [p for p in found if p.name not in ("", "self")]


def fits(value: Any, kind: str) -> bool:
    """Whether pybind11 would take a value for a parameter of this kind."""
    if kind == "buffer" or kind.endswith(".Buffer"):
        return isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "__bytes__")
    if kind in ("int", "typing.SupportsInt"):
        return isinstance(value, int)
    if kind == "Dims":
        return isinstance(value, (tuple, list)) and all(isinstance(v, int) for v in value)
    if kind in ("str", "bool", "float", "tuple", "list"):
        return type(value).__name__ == kind
    if kind == "numpy.ndarray":
        return type(value).__name__ == "ndarray"
    last = kind.rpartition(".")[2]
    return any(c.__name__ == last for c in type(value).__mro__)


def binds(version: str, owner: str, method: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether some overload of `owner.method` takes these arguments."""
    for signature in dump(version)[owner][method]:
        wanted = parameters(signature)
        given, rest = wanted[: len(args)], wanted[len(args) :]
        if len(given) < len(args) or not kwargs.keys() <= {p.name for p in rest}:
            continue
        pairs = [(value, p.kind) for value, p in zip(args, given, strict=True)]
        pairs += [(kwargs[p.name], p.kind) for p in rest if p.name in kwargs]
        complete = all(p.has_default or p.name in kwargs for p in rest)
        if complete and all(fits(value, kind) for value, kind in pairs):
            return True
    return False
