"""What the classes of the fake module do; module.py makes each version's own of them.

`_set` is the constructor of what only TensorRT makes; `_fake` and `_trt` are the emulated version
and its module.
"""

from __future__ import annotations

import json
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from tests.fake_tensorrt.execution import Computation

DTYPES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.INT8: "INT8"}
NUMPY = {"float32": "FLOAT", "int8": "INT8"}


def _made(self: Any, name: str, *args: Any) -> Any:
    """An object that only TensorRT makes."""
    thing = object.__new__(getattr(self._trt, name))
    thing._set(*args)
    return thing


def _complain(self: Any, logger: Any, message: str) -> None:
    logger.log(self._trt.ILogger.ERROR, message)


class ILogger:
    _initialised = False

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class _NeedsGpu:
    def __init__(self, logger: Any) -> None:
        if not logger._initialised or not self._fake.gpu:
            _complain(self, logger, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger


class Builder:
    __init__ = _NeedsGpu.__init__

    def create_network(self, flags: int = 0) -> Any:
        typed = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._fake.rule(bool(flags & typed), "the network is not strongly typed")
        return _made(self, "INetworkDefinition")

    def create_builder_config(self) -> Any:
        return _made(self, "IBuilderConfig")

    def create_optimization_profile(self) -> Any:
        return _made(self, "IOptimizationProfile")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        fake = self._fake
        fake.built += 1
        fake.flags = set(config._flags)
        fake.rule(len(config._profiles) == 1, "a refittable engine has one profile")
        if not fake.builds:
            message = "Could not find any implementation for node {ForeignNode}: OutOfMemory"
            _complain(self, self._logger, message)
            return None
        computation = Computation(network._onnx)
        if fake.drops_bias:
            zeros = {n: 0 * a for n, a in computation.initializers.items() if "bias" in n}
            computation.replace(zeros)
        (_, least, _, most) = config._profiles[0]._shapes[0]
        head = {
            "version": fake.version,
            "refit": "REFIT" in config._flags,
            "rows": [least[0], most[0]],
        }
        plan = json.dumps(head).encode() + b"\n" + computation.serialized()
        config._cache._content += b"timed;"
        return _made(self, "IHostMemory", plan)


class INetworkDefinition:
    def _set(self) -> None:
        self._onnx = b""


class IHostMemory:
    def _set(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content


class ITimingCache:
    def _set(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return _made(self, "IHostMemory", self._content)


class IOptimizationProfile:
    def _set(self) -> None:
        self._shapes: list[tuple] = []

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes.append((input, min, opt, max))


class IBuilderConfig:
    def _set(self) -> None:
        self._flags = {"TF32"}
        self._profiles: list[Any] = []
        self._cache: Any = None
        self._limits: dict[str, int] = {}

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool.name] = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache and not self._fake.timings_open:
            return None
        return _made(self, "ITimingCache", bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._content and not self._fake.timings_match:
            return False
        self._fake.timings.append(cache._content)
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network

    def parse(self, model: bytes, path: str | None = None) -> bool:
        onnx.checker.check_model(onnx.load_model_from_string(bytes(model)))
        self._network._onnx = bytes(model)
        return self._fake.parses

    @property
    def num_errors(self) -> int:
        return 0 if self._fake.parses else 2

    def get_error(self, index: int) -> str:
        return f"In node {index}: UNSUPPORTED_NODE"


class Runtime:
    __init__ = _NeedsGpu.__init__

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        head, _, content = bytes(serialized_engine).partition(b"\n")
        try:
            facts = json.loads(head)
        except ValueError:
            facts = {}
        if not self._fake.opens or facts.get("version") != self._fake.version:
            _complain(self, self._logger, "The engine plan file is not compatible")
            return None
        self._fake.opened += 1
        return _made(self, "ICudaEngine", facts, Computation(content), self._logger)


class ICudaEngine:
    def _set(self, facts: dict, computation: Computation, logger: Any) -> None:
        self._facts, self._computation, self._logger = facts, computation, logger
        self._busy = threading.Lock()
        fake = self._fake
        fake.live += 1
        fake.live_max = max(fake.live_max, fake.live)

        def gone() -> None:
            fake.live -= 1
            fake.rule(fake.has_current_context(), "an engine went without a current context")

        weakref.finalize(self, gone)

    @contextmanager
    def _alone(self, what: str) -> Any:
        free = self._busy.acquire(blocking=False)
        self._fake.rule(free, f"{what} while the engine was in use")
        try:
            yield
        finally:
            if free:
                self._busy.release()

    @property
    def num_io_tensors(self) -> int:
        return len(self._computation.tensors)

    @property
    def refittable(self) -> bool:
        return self._facts["refit"]

    def get_tensor_name(self, index: int) -> str:
        return self._computation.tensors[index][0]

    def get_tensor_dtype(self, name: str) -> Any:
        (dtype,) = (kind for n, _, kind in self._computation.tensors if n == name)
        return getattr(self._trt.DataType, DTYPES[dtype])

    def create_execution_context(self) -> Any:
        if not self._fake.has_context:
            _complain(self, self._logger, "Requested amount of GPU memory could not be allocated")
            return None
        return _made(self, "IExecutionContext", self)


class IExecutionContext:
    def _set(self, engine: Any) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        (_, known, _) = self._engine._computation.tensors[0]
        least, most = self._engine._facts["rows"]
        if not least <= shape[0] <= most or shape[1:] != known[1:]:
            _complain(self, self._engine._logger, f"shape {shape} lies outside the profile")
            return False
        self._shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else ["x"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._fake.runs:
            _complain(self, self._engine._logger, "Cuda Runtime (out of memory)")
            return False
        with self._engine._alone("execute_async_v3"):
            self._engine._computation.run(self._addresses, self._shape)
        return True


class Weights:
    def __init__(self, a: np.ndarray) -> None:
        # A pointer, not a copy: whose array must still be there when it is read.
        self._array = weakref.ref(a)
        self._kind, self._size = NUMPY[a.dtype.name], a.size
        assert a.flags.c_contiguous

    def _set(self, kind: str, size: int) -> None:
        self._kind, self._size = kind, size

    @property
    def dtype(self) -> Any:
        return getattr(self._trt.DataType, self._kind)

    @property
    def size(self) -> int:
        return self._size

    def numpy(self) -> np.ndarray:
        raise AssertionError("Weights.numpy() is wrong in 10.3 with numpy 2: never read it back")


class Refitter:
    def __init__(self, engine: Any, logger: Any) -> None:
        if not engine.refittable or not self._fake.has_refitter:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine, self._logger = engine, logger
        self._given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        names = self._engine._computation.initializers
        return [name for name in names if not self._fake.unnamed(name)]

    def get_weights_prototype(self, weights_name: str) -> Any:
        array = self._engine._computation.initializers[weights_name]
        size = array.size + self._fake.narrow(weights_name)
        return _made(self, "Weights", NUMPY[array.dtype.name], size)

    def set_named_weights(self, name: str, weights: Any) -> bool:
        prototype = self.get_weights_prototype(name)
        if (prototype._kind, prototype._size) != (weights._kind, weights._size):
            _complain(self, self._logger, f"{name}: count or type differs")
            return False
        self._given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        groups = [group for group in self._fake.fused if group & self._given.keys()]
        return sorted(set().union(*groups) - self._given.keys())

    def refit_cuda_engine(self) -> bool:
        fake = self._fake
        fake.rule(not self.get_missing_weights(), "refitted with weights missing")
        values = {}
        for name, weights in self._given.items():
            array = weights._array()
            fake.rule(array is not None, f"{name}: the host array was gone before the refit")
            if array is not None:
                values[name] = array.copy()
        if fake.refit_drops_bias:
            values |= {n: 0 * a for n, a in values.items() if "bias" in n}
        fake.given = sorted(values)
        self._given = {}
        with self._engine._alone("refit_cuda_engine"):
            if not fake.refits:  # half of it is done
                half = list(values)[: len(values) // 2]
                self._engine._computation.replace({n: values[n] for n in half})
                _complain(self, self._logger, "refit failed half-way")
                return False
            self._engine._computation.replace(values)
        fake.refitted += 1
        return True


CLASSES = (
    ILogger,
    Builder,
    INetworkDefinition,
    IHostMemory,
    ITimingCache,
    IOptimizationProfile,
    IBuilderConfig,
    OnnxParser,
    Runtime,
    ICudaEngine,
    IExecutionContext,
    Weights,
    Refitter,
)
