"""As much of `pycuda.driver` as engines/gpu.py uses, on host memory.

For machines where the real one cannot be built (tests/cuda_rig). tests/test_gpu.py runs the
same tests on both, and compares the names.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import types
from typing import Any

import numpy as np


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):
    pass


class RuntimeError(Error):
    pass


class FakeDriver:
    """The module's state and its faults."""

    def __init__(self) -> None:
        self.device = True
        self.memory_left = 1 << 40
        self.fails: str | None = None
        self.allocated = 0
        self._local = threading.local()
        self.module = _module(self)

    @property
    def depth(self) -> int:
        """How many contexts this thread has pushed."""
        return getattr(self._local, "depth", 0)

    def push(self, by: int) -> None:
        self._local.depth = self.depth + by

    def call(self, name: str) -> None:
        if self.depth < 1:
            raise LogicError(f"{name} failed: invalid device context")
        if self.fails == name:
            raise LogicError(f"{name} failed: unspecified launch failure")

    def take(self, size: int) -> None:
        if size > self.memory_left:
            raise MemoryError("cuMemAlloc failed: out of memory")
        self.memory_left -= size
        self.allocated += size

    def give(self, size: int) -> None:
        self.memory_left += size
        self.allocated -= size

    def enter(self, monkeypatch: Any) -> None:
        """Be the pycuda of this process while a test runs."""
        package = types.ModuleType("pycuda")
        package.driver = self.module
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.module)


class _Allocation:
    def __init__(self, fake: FakeDriver, size: int) -> None:
        fake.take(size)
        self._fake, self._size = fake, size
        self._memory: Any = ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        return ctypes.addressof(self._memory)

    def free(self) -> None:
        self._fake.call("cuMemFree")
        if self._memory is None:
            raise LogicError("memory was freed twice")
        self._memory = None
        self._fake.give(self._size)


class _HostAllocation(_Allocation):
    """What a page-locked array's `base` is."""

    def __init__(self, fake: FakeDriver, shape: tuple[int, ...], dtype: Any) -> None:
        kind = np.dtype(dtype)
        super().__init__(fake, max(1, int(np.prod(shape)) * kind.itemsize))
        where = (int(self), False)
        facts = {"shape": shape, "typestr": kind.str, "data": where, "version": 3}
        self.__array_interface__ = facts


def _module(fake: FakeDriver) -> types.ModuleType:
    module = types.ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            fake.push(1)

        @staticmethod
        def pop() -> None:
            fake.push(-1)

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return "Orin (fake, host CPU)"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        def __init__(self) -> None:
            fake.call("cuStreamCreate")
            self.handle = id(self)

        def synchronize(self) -> None:
            fake.call("cuStreamSynchronize")

    def init() -> None:
        if not fake.device:
            raise RuntimeError("cuInit failed: no CUDA-capable device is detected")

    def mem_alloc(size: int) -> _Allocation:
        fake.call("cuMemAlloc")
        return _Allocation(fake, size)

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        fake.call("cuMemHostAlloc")
        return np.asarray(_HostAllocation(fake, shape, dtype))

    def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream) -> None:
        fake.call("cuMemcpyHtoDAsync")
        ctypes.memmove(int(dest), src.ctypes.data, src.nbytes)

    def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream) -> None:
        fake.call("cuMemcpyDtoHAsync")
        ctypes.memmove(dest.ctypes.data, int(src), dest.nbytes)

    for value in (Context, Device, Stream, Error, LogicError, MemoryError, RuntimeError):
        setattr(module, value.__name__, value)
    for function in (init, mem_alloc, pagelocked_empty, memcpy_htod_async, memcpy_dtoh_async):
        setattr(module, function.__name__, function)
    return module
