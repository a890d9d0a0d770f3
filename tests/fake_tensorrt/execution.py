"""What a fake engine computes: its ONNX model, by onnxruntime on the CPU, so answers are real."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

REFITTED = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)


class Computation:
    """A model whose float32 and int8 initializers may be replaced."""

    def __init__(self, content: bytes) -> None:
        self._model = onnx.load_model_from_string(content)
        self._session: Any = None

    @property
    def initializers(self) -> dict[str, np.ndarray]:
        tensors = self._model.graph.initializer
        return {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type in REFITTED}

    def replace(self, values: dict[str, np.ndarray]) -> None:
        for tensor in self._model.graph.initializer:
            if tensor.name in values:
                new = values[tensor.name].reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(np.array(new), tensor.name))
        self._session = None

    def serialized(self) -> bytes:
        return self._model.SerializeToString()

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, shape with -1 for the batch, and ONNX dtype of each input, then each output."""
        graph = self._model.graph
        return [
            (
                value.name,
                tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim),
                value.type.tensor_type.elem_type,
            )
            for value in (*graph.input, *graph.output)
        ]

    def run(self, addresses: dict[str, int], shape: tuple[int, ...]) -> None:
        """Read the input at its address, write the output at its own."""
        (x, *_), (y, *_) = self.tensors
        size = int(np.prod(shape))
        given = np.ctypeslib.as_array((ctypes.c_float * size).from_address(addresses[x]))
        (answer,) = self._opened().run(None, {x: given.reshape(shape).copy()})
        ctypes.memmove(addresses[y], np.ascontiguousarray(answer).ctypes.data, answer.nbytes)

    def _opened(self) -> Any:
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            # As written: nothing is fused, so sums of codes stay exact.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                self.serialized(), options, ["CPUExecutionProvider"]
            )
        return self._session
