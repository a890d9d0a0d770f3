"""Our CUDA kernels on the device: compiled at first use, kept on disk, launched.

A stock Jetson has no Triton, and so no torch.compile; what it has is nvcc. The sources of
`engines/kernels/` are compiled there as one translation unit, since a cubin of one CUDA version is
in general not loadable by the driver of another. The result is kept under the hash of all that it
depends on: the sources, the options, nvcc's version, the architecture.

Two rules of the neighbourhood. The context is the primary one, which torch uses too, and it is
made current around every launch, since each thread has a current context of its own. The stream is
the default one: it is torch's unless another is asked for, and pycuda can launch on no stream that
it did not make.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path

from engines.gpu import Axes, CompileError, GpuError, compile_kernels, nvcc_version, open_gpu

_FOLDER = Path(__file__).with_name("kernels")
# No fused multiply-add: what decides a code must have the bits that torch's operators give. The
# others are nvcc's defaults, written out because as much depends on them.
OPTIONS = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-std=c++17")
_LARGEST_GRID_Y = 65535


class KernelsUnavailableError(RuntimeError):
    """Our kernels cannot be had here; the message says why, and what to do."""


class KernelError(RuntimeError):
    """A kernel could not be launched."""


def kernel_source() -> str:
    """All kernels, as one translation unit."""
    files = [_FOLDER / "numeric.cuh", *sorted(_FOLDER.glob("*.cu"))]
    return "\n".join(file.read_text() for file in files)


@functools.cache
def kernel_signatures() -> dict[str, str]:
    """The arguments of each kernel by its name, as `struct` has them: P, i or f each."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', kernel_source())
    return {name: "".join(map(_letter, arguments.split(","))) for name, arguments in found}


def _letter(argument: str) -> str:
    if "*" in argument:
        return "P"
    return {"int": "i", "float": "f"}[argument.split()[0]]


class CudaDriver:
    """The kernels, loaded into the context that torch uses.

    Args:
        cache: Folder for compiled kernels; made if missing.
        device: Number of the CUDA device.
        nvcc: The compiler, by name or path.

    Raises:
        KernelsUnavailableError: pycuda, a driver, a device or nvcc is missing, or the kernels do
            not compile.
    """

    def __init__(self, cache: Path, device: int = 0, nvcc: str = "nvcc") -> None:
        try:
            self._gpu = open_gpu(device)
        except ImportError as error:
            raise KernelsUnavailableError(str(error)) from error
        self.architecture = "sm_" + self._gpu.compute_capability.replace(".", "")
        kept = _compiled(cache, self.architecture, nvcc)
        try:
            with self._gpu.current():
                self._kernels = self._gpu.kernels(kept.read_bytes(), kernel_signatures())
        except GpuError as error:
            kept.unlink()  # for the next start to compile anew
            raise KernelsUnavailableError(
                f"the driver does not load what {nvcc} compiled for {self.architecture}: {error}; "
                "wanted a toolkit that is no newer than the driver"
            ) from error

    def launch(self, name: str, grid: Axes, block: Axes, *arguments: float | None) -> None:
        """Start a kernel on the default stream; it is not waited for.

        Args:
            name: Of the kernel.
            grid: Blocks along x, y and z.
            block: Threads along x, y and z.
            arguments: Addresses in device memory (None: null), integers of 32 bits and floats, as
                the kernel's source lists them.

        Raises:
            KernelError: The driver refuses, or the arguments are not what the source lists.
        """
        try:
            packed = struct.pack(kernel_signatures()[name], *(a or 0 for a in arguments))
        except struct.error as error:
            raise KernelError(f"kernel {name} cannot be given {arguments}: {error}") from error
        if min(grid) < 1 or grid[1] > _LARGEST_GRID_Y:
            raise KernelError(
                f"kernel {name} cannot run as {grid} blocks; wanted 1 and more, and along y "
                f"{_LARGEST_GRID_Y} at most: split the batch"
            )
        try:
            with self._gpu.current():
                self._kernels.launch(name, grid, block, packed)
        except GpuError as error:
            raise KernelError(f"kernel {name} could not be launched: {error}") from error


def _compiled(cache: Path, architecture: str, nvcc: str) -> Path:
    """The cubin's file, made unless it is there."""
    compiler_path = shutil.which(nvcc)
    if compiler_path is None:
        raise KernelsUnavailableError(
            f"there is no {nvcc} to compile kernels with; JetPack has it in /usr/local/cuda/bin: "
            "put that on PATH"
        )
    kept = _cubin_path(cache, architecture, nvcc_version(compiler_path))
    if kept.exists():
        return kept
    try:
        cubin = compile_kernels(kernel_source(), compiler_path, OPTIONS, architecture)
    except CompileError as error:
        raise KernelsUnavailableError(
            f"{compiler_path} does not compile our kernels for {architecture}: {error}"
        ) from error
    _keep(kept, cubin)
    return kept


def _cubin_path(cache: Path, architecture: str, nvcc_version: str) -> Path:
    told = "\0".join((kernel_source(), nvcc_version, architecture, *OPTIONS))
    return cache / f"kernels-{hashlib.sha256(told.encode()).hexdigest()[:32]}.cubin"


def _keep(target: Path, content: bytes) -> None:
    """Whole or not at all, whatever ends this process or the power."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
