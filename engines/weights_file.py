"""A version's weights as bytes: arrays, the model they are for, the classes and the lineage."""

from __future__ import annotations

from typing import Any

from engines.base import Weights, WeightsError
from engines.tensor_file import TensorFileError, digest, pack, unpack
from models import ModelSpec

FORMAT = "ffedge-weights-1"


def weights_to_bytes(weights: Weights) -> bytes:
    """The file's content; the same weights give the same bytes."""
    return pack(weights.arrays, _fields(weights))


def weights_digest(weights: Weights) -> str:
    """SHA-256, in hexadecimal, of all that the weights hold."""
    return digest(weights.arrays, _fields(weights))


def weights_from_bytes(content: bytes) -> Weights:
    """The weights in a file's content, checked.

    Raises:
        WeightsError: Truncated, altered, of another format, or not fit to serve.
    """
    try:
        arrays, fields = unpack(content)
        if fields["format"] != FORMAT:
            raise WeightsError(f"weights are of another format than {FORMAT!r}")
        weights = Weights(
            spec=ModelSpec.from_json(fields["model"]),
            classes=tuple(fields["classes"]),
            arrays=arrays,
            version=fields["version"],
            parent=fields["parent"],
            last_seq=fields["last_seq"],
        )
    except TensorFileError as error:
        raise WeightsError(str(error)) from error
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the file describes no weights: {error!r}") from error
    weights.check()
    return weights


def _fields(weights: Weights) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": weights.spec.to_json(),
        "classes": list(weights.classes),
        "version": weights.version,
        "parent": weights.parent,
        "last_seq": weights.last_seq,
    }
