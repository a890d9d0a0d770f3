"""The GPU's context, memory, streams and kernels: the one file that drives pycuda.

The context is the device's primary one, which torch and the CUDA runtime under TensorRT use too; a
second one would share nothing with them. It is made current for the length of a call and in the
thread of the call, since requests come from one thread and new versions from another. pycuda frees
what it holds only where its context is current, and in another thread keeps it for good: so
everything is given back inside `Gpu.current` as well, by `close`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GpuError(RuntimeError):
    """The GPU could not do what it was asked for: memory, a launch, or the device itself."""


class CompileError(RuntimeError):
    """nvcc does not compile a source; the message is its first complaint."""


Axes = tuple[int, int, int]


class Gpu:
    """One device and its primary context; any thread may use it. Made by `open_gpu`.

    Args:
        driver: The module `pycuda.driver`, initialised.
        index: Which one.
    """

    def __init__(self, driver: ModuleType, index: int) -> None:
        self._driver = driver
        device = driver.Device(index)
        self._context = device.retain_primary_context()
        self.name: str = device.name()
        self.compute_capability = ".".join(map(str, device.compute_capability()))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's own for a while.

        Raises:
            GpuError: A call to the driver in the meantime failed.
        """
        try:
            self._context.push()
            try:
                yield
            finally:
                self._driver.Context.pop()
        except self._driver.Error as error:
            raise GpuError(f"CUDA: {error}") from error

    def stream(self) -> Stream:
        """A new stream; to be called inside `current`, as all that follows."""
        return Stream(self._driver)

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        """Memory for one array, on both sides."""
        return Buffer(self._driver, shape, dtype)

    def kernels(self, cubin: bytes, names: Collection[str]) -> Kernels:
        """Compiled kernels, loaded."""
        return Kernels(self._driver, cubin, names)


class Stream:
    """An order of work on the GPU. One thread at a time.

    Args:
        driver: The module `pycuda.driver`.
    """

    def __init__(self, driver: ModuleType) -> None:
        self._stream = driver.Stream()

    @property
    def handle(self) -> int:
        """As TensorRT wants it."""
        return int(self._stream.handle)

    @property
    def native(self) -> object:
        """As pycuda wants it."""
        return self._stream

    def wait(self) -> None:
        """Until all that was queued is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Give it back."""
        self._stream = None


class Buffer:
    """An array in page-locked host memory and room for it on the device.

    Args:
        driver: The module `pycuda.driver`.
        shape: Of the array; the first axis is the batch, of which calls may use a part.
        dtype: Of the array.
    """

    def __init__(self, driver: ModuleType, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._driver = driver
        self._host: Any = driver.pagelocked_empty(shape, dtype)
        try:
            self._device = driver.mem_alloc(max(1, self.host.nbytes))
        except driver.Error:
            self._host.base.free()
            raise

    @property
    def host(self) -> NDArray[Any]:
        """The host's side, `shape`."""
        array: NDArray[Any] = self._host
        return array

    @property
    def address(self) -> int:
        """The device's side."""
        return int(self._device)

    def upload(self, rows: int, stream: Stream) -> None:
        """Copy the first rows to the device, in the stream's order."""
        self._driver.memcpy_htod_async(self._device, self.host[:rows], stream.native)

    def download(self, rows: int, stream: Stream) -> None:
        """Copy the first rows from the device, in the stream's order."""
        self._driver.memcpy_dtoh_async(self.host[:rows], self._device, stream.native)

    def close(self) -> None:
        """Give both sides back."""
        if self._host is not None:
            self._device.free()
            self._host.base.free()
            self._host = None


class Kernels:
    """Kernels that the device has loaded.

    Args:
        driver: The module `pycuda.driver`.
        cubin: Compiled for the device's architecture.
        names: Of the kernels in it.
    """

    def __init__(self, driver: ModuleType, cubin: bytes, names: Collection[str]) -> None:
        self._module = driver.module_from_buffer(cubin)
        self._functions = {name: self._module.get_function(name) for name in names}

    def launch(self, name: str, grid: Axes, block: Axes, packed: bytes) -> None:
        """Start a kernel on the default stream; it is not waited for.

        Args:
            name: Of the kernel.
            grid: Blocks along x, y and z.
            block: Threads along x, y and z.
            packed: Its arguments as they lie in memory.
        """
        self._functions[name]._launch_kernel(grid, block, packed, 0, None)


def nvcc_version(nvcc: str) -> str:
    """What the compiler says of itself."""
    from pycuda.compiler import get_nvcc_version

    version: str = get_nvcc_version(nvcc)
    return version


def compile_kernels(source: str, nvcc: str, options: Sequence[str], architecture: str) -> bytes:
    """A cubin.

    Args:
        source: CUDA C++.
        nvcc: The compiler's path.
        options: Its options.
        architecture: Of the device, as `sm_87`.

    Raises:
        CompileError: It does not compile.
    """
    import pycuda.compiler as compiler
    from pycuda.driver import CompileError as Complaint

    try:
        cubin: bytes = compiler.compile(
            source,
            nvcc=nvcc,
            options=[*options],
            arch=architecture,
            no_extern_c=True,
            cache_dir=False,  # its files are not whole or absent
        )
    except Complaint as error:
        raise CompileError(_first_complaint(error)) from error
    return cubin


def _first_complaint(error: Any) -> str:  # noqa: ANN401 - pycuda has no types
    lines = [*str(error.stderr or "").splitlines(), *str(error.stdout or "").splitlines(), ""]
    return next((line for line in lines if "error" in line.lower()), lines[0]).strip()


def open_gpu(index: int = 0) -> Gpu:
    """A GPU.

    Args:
        index: Which one.

    Raises:
        ImportError: pycuda is not installed, finds no driver, or the driver no device.
    """
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise ImportError(f"pycuda unavailable: {error}") from error
    try:
        driver.init()
        return Gpu(driver, index)
    except driver.Error as error:
        raise ImportError(f"no GPU {index}: {error}") from error
