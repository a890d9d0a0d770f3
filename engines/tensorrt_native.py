"""One opened plan: its context, buffers and stream, run by one thread and refitted by another.

Two of them share no stream, no buffer and no context, so that one may be refitted while the other
answers. Of one, `run` and `refit` never overlap: whoever holds it alone decides (see
engines/tensorrt_predict.py).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineFailedError, EngineUnavailableError
from engines.gpu import Gpu, GpuError
from engines.onnx_model import OnnxModel, fingerprint
from engines.tensorrt_build import INPUT, ROWS_MAX, Plan
from engines.tensorrt_library import Library


class RefitError(RuntimeError):
    """The engine could not be given other values, and may now hold some of each."""


class NativeEngine:
    """A plan on the GPU.

    What it holds there is given back when nothing refers to it any more, in whatever thread.

    Args:
        library: TensorRT.
        gpu: The device.
        plan: Built for it.
        input_shape: Of one sample.
        output: Name of the output.
        output_shape: Of one sample's output.
        output_dtype: Of the output: float32 or int8.

    Raises:
        EngineUnavailableError: TensorRT does not open the plan, or memory is short.
    """

    def __init__(
        self,
        library: Library,
        gpu: Gpu,
        plan: Plan,
        input_shape: tuple[int, ...],
        output: str,
        output_shape: tuple[int, ...],
        output_dtype: type[np.generic],
    ) -> None:
        self._library = library
        self._gpu = gpu
        self.plan = plan
        self._output_shape, self._output_dtype = output_shape, output_dtype
        self._rows = 0  # of the shape that was set last
        self._parts = _Parts(gpu)
        weakref.finalize(self, self._parts.close)
        library.errors.clear()
        try:
            with gpu.current():
                self._open(input_shape, output)
                self._named = self._nameable()
        except (EngineUnavailableError, RefitError, GpuError) as error:
            self._parts.close()
            raise EngineUnavailableError(f"TensorRT engine: {error}") from error

    def _open(self, input_shape: tuple[int, ...], output: str) -> None:
        parts = self._parts
        parts.engine = self._library.runtime.deserialize_cuda_engine(self.plan.content)
        if parts.engine is None:
            raise EngineUnavailableError(f"the plan does not open: {self._library.told()}")
        self._check(output)
        parts.context = parts.engine.create_execution_context()
        if parts.context is None:
            raise EngineUnavailableError(f"no execution context: {self._library.told()}")
        parts.stream = self._gpu.stream()
        parts.input = self._gpu.buffer((ROWS_MAX, *input_shape), np.float32)
        parts.output = self._gpu.buffer((ROWS_MAX, *self._output_shape), self._output_dtype)
        for name, buffer in ((INPUT, parts.input), (output, parts.output)):
            if not parts.context.set_tensor_address(name, buffer.address):
                raise EngineUnavailableError(f"{name!r} has no place: {self._library.told()}")

    def run(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """The output for any number of rows, in parts of at most `ROWS_MAX`.

        Args:
            x: float32 `[batch, *input_shape]`.

        Returns:
            `[batch, *output_shape]`, copied.

        Raises:
            EngineFailedError: The GPU failed; a later call may succeed.
        """
        answers = np.empty((len(x), *self._output_shape), self._output_dtype)
        try:
            with self._gpu.current():
                for start in range(0, len(x), ROWS_MAX):
                    part = x[start : start + ROWS_MAX]
                    answers[start : start + len(part)] = self._run(part)
        except GpuError as error:
            raise EngineFailedError(f"TensorRT did not answer: {error}") from error
        return answers

    def _run(self, part: NDArray[np.float32]) -> NDArray[Any]:
        parts, rows = self._parts, len(part)
        if rows != self._rows:
            self._rows = 0
            shape = part.shape
            if not parts.context.set_input_shape(INPUT, shape) or parts.context.infer_shapes():
                why = self._library.told()
                raise EngineFailedError(f"TensorRT refuses input of shape {[*shape]}: {why}")
            self._rows = rows
        parts.input.host[:rows] = part
        parts.input.upload(rows, parts.stream)
        if not parts.context.execute_async_v3(parts.stream.handle):
            raise EngineFailedError(f"TensorRT did not answer: {self._library.told()}")
        parts.output.download(rows, parts.stream)
        parts.stream.wait()
        answers: NDArray[Any] = parts.output.host[:rows]
        return answers

    def fixed(self, model: OnnxModel) -> list[str]:
        """Names of what differs from what the engine was built with and cannot be given to it."""
        built_with = self.plan.built_with
        return [
            name
            for name, array in model.learned.items()
            if not self._takes(name, array) and built_with.get(name) != fingerprint(array)
        ]

    def refit(self, model: OnnxModel) -> None:
        """Give it all that was learned and can be given; nothing of it may be running.

        Raises:
            RefitError: It failed, perhaps half-way: the engine must not be used any more.
        """
        if not self._named:
            return  # by `fixed`, nothing need be given
        self._library.errors.clear()
        try:
            with self._gpu.current():
                self._refit(model)
        except GpuError as error:
            raise RefitError(str(error)) from error

    def _refit(self, model: OnnxModel) -> None:
        # A new one each time: it keeps pointers to what it was given, and memory of its own.
        refitter = self._refitter()
        given = self._give(refitter, model.learned)
        # What is fused with them has to come along, unchanged though it be.
        wanted = refitter.get_missing_weights()
        given += self._give(refitter, {n: a for n, a in model.constants.items() if n in wanted})
        if missing := refitter.get_missing_weights():
            raise RefitError(f"TensorRT also wants {', '.join(sorted(missing))}")
        if not refitter.refit_cuda_engine():
            raise RefitError(f"TensorRT refused: {self._library.told()}")
        del given  # until here TensorRT reads from them

    def _refitter(self) -> Any:  # noqa: ANN401 - TensorRT's own
        try:
            return self._library.trt.Refitter(self._parts.engine, self._library.logger)
        except TypeError as error:  # its factory returned nullptr
            raise RefitError(f"no refitter: {self._library.told()}") from error

    def _give(
        self,
        refitter: Any,  # noqa: ANN401
        values: Mapping[str, NDArray[Any]],
    ) -> list[NDArray[Any]]:
        trt, given = self._library.trt, []
        for name, array in values.items():
            if self._takes(name, array):
                given.append(np.array(array).reshape(-1))
                if not refitter.set_named_weights(name, trt.Weights(given[-1])):
                    raise RefitError(f"{name!r} was not taken: {self._library.told()}")
        return given

    def close(self) -> None:
        """Give back what it holds on the GPU; nothing is run after."""
        self._parts.close()

    def _check(self, output: str) -> None:
        """The plan must have the network's one input and one output."""
        trt = self._library.trt
        dtypes = {np.float32: trt.DataType.FLOAT, np.int8: trt.DataType.INT8}
        wanted = {INPUT: trt.DataType.FLOAT, output: dtypes[self._output_dtype]}
        engine = self._parts.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {name: engine.get_tensor_dtype(name) for name in names}
        if found != wanted:
            raise EngineUnavailableError(
                f"the plan has inputs and outputs {found}, the network {wanted}"
            )

    def _nameable(self) -> dict[str, tuple[Any, int]]:
        """Name of each value that can be given to its dtype and number of elements."""
        if not self._parts.engine.refittable:
            return {}
        refitter = self._refitter()
        prototypes = {n: refitter.get_weights_prototype(n) for n in refitter.get_all_weights()}
        return {name: (p.dtype, int(p.size)) for name, p in prototypes.items()}

    def _takes(self, name: str, array: NDArray[Any]) -> bool:
        trt = self._library.trt
        dtype = {"float32": trt.DataType.FLOAT, "int8": trt.DataType.INT8}[array.dtype.name]
        return self._named.get(name) == (dtype, array.size)


class _Parts:
    """What an engine holds on the GPU; whoever drops the engine need not know of it."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.engine: Any = None
        self.context: Any = None
        self.stream: Any = None
        self.input: Any = None
        self.output: Any = None

    def close(self) -> None:
        """Give it back, in order, with the context current."""
        with contextlib.suppress(GpuError), self._gpu.current():
            for part in (self.input, self.output, self.stream):
                if part is not None:
                    part.close()
            self.context = self.engine = None  # left to right
