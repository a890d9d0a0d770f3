"""Arrays and a JSON object as bytes: safetensors, with a digest over everything that was meant.

safetensors holds no code and its offsets are checked, but its values are not. So the metadata
carries a SHA-256 over the JSON object and over each array's name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Arrays = Mapping[str, NDArray[np.generic]]


class TensorFileError(ValueError):
    """The bytes are not such a file, or a damaged one."""


def pack(arrays: Arrays, fields: dict[str, Any]) -> bytes:
    """The file's content; equal arguments give equal bytes."""
    # One metadata entry: safetensors writes several in an order of its own each time.
    metadata = {
        "ffedge": json.dumps({"fields": fields, "sha256": digest(arrays, fields)}, sort_keys=True)
    }
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(contiguous, metadata)


def unpack(content: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """The arrays and the JSON object that `pack` was given.

    Raises:
        TensorFileError: Truncated, altered, or something else altogether.
    """
    try:
        arrays: dict[str, NDArray[np.generic]] = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["ffedge"])
        fields, claimed = metadata["fields"], metadata["sha256"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TensorFileError(f"not a tensor file, or a damaged one: {error}") from error
    if not isinstance(fields, dict) or digest(arrays, fields) != claimed:
        raise TensorFileError("the SHA-256 does not match: the file was altered or damaged")
    return arrays, fields


def digest(arrays: Arrays, fields: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the JSON object and the arrays."""
    total = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"\n{name} {array.dtype} {[*array.shape]}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
