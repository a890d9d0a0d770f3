"""The model of one version, taken apart: its structure, which a plan is built for, and its values.

Versions of one network share the structure and differ in what was learned, which a built plan can
be given anew (engines/tensorrt_native.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.base import Weights
from engines.onnx_export import export_onnx, export_prefix, refit_arrays

_REFITTED = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """One version of a network, or of its first units, as a builder wants it.

    Args:
        content: The ONNX file.
        structure: SHA-256 in hexadecimal of all but what was learned.
        learned: Name of each initializer that was, to its array.
        constants: The same of the others of float32 or int8; they never change.
    """

    content: bytes
    structure: str
    learned: Mapping[str, NDArray[Any]]
    constants: Mapping[str, NDArray[Any]]


def answering_model(weights: Weights) -> OnnxModel:
    """The network that answers; its output is `goodness`.

    Raises:
        WeightsError: The weights must not serve.
    """
    return _taken_apart(export_onnx(weights), refit_arrays(weights).keys())


def prefix_model(weights: Weights, units: int) -> OnnxModel:
    """The first units; the output is `codes`.

    Raises:
        WeightsError: The weights must not serve.
        ValueError: There is no such prefix.
    """
    return _taken_apart(export_prefix(weights, units), refit_arrays(weights, units).keys())


def fingerprint(array: NDArray[Any]) -> str:
    """SHA-256 in hexadecimal: which value a plan was built with."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _taken_apart(content: bytes, names: Collection[str]) -> OnnxModel:
    model = onnx.load_model_from_string(content)
    learned: dict[str, NDArray[Any]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            learned[tensor.name] = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
        elif tensor.data_type in _REFITTED:
            constants[tensor.name] = numpy_helper.to_array(tensor)
    structure = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return OnnxModel(content, structure, learned, constants)
