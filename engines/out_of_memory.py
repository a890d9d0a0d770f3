"""Memory ran out: how that is told, whatever says it, and what is done before another try.

What a library calls it, and where:

    torch on CUDA       OutOfMemoryError, "CUDA out of memory. Tried to allocate ..."
    torch on a Jetson   RuntimeError, "NVML_SUCCESS == r INTERNAL ASSERT FAILED at
                        ".../CUDACachingAllocator.cpp"...": it asks a library that Tegra lacks what
                        else takes memory, and fails at that (pytorch #185240, #128661)
    CUDA, cuBLAS, ...   RuntimeError, "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", ...
    torch on the CPU    RuntimeError, "DefaultCPUAllocator: can't allocate memory", or "not enough
                        memory"
    pycuda              MemoryError of its own, "cuMemAlloc failed: out of memory"
    NumPy, Python       MemoryError

No torch here before it is loaded anyway: a process without it may ask as well.
"""

from __future__ import annotations

import gc
import sys

_NAMES = ("OutOfMemoryError", "MemoryError")
_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
_TEGRA = ("NVML_SUCCESS == r INTERNAL ASSERT FAILED", "CUDACachingAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came of, says in whatever words that memory ran out."""
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return True
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        any(words in said for words in _WORDS) or all(words in said for words in _TEGRA)
    )


def release_memory() -> None:
    """Give back what nothing holds any more, torch's cached GPU memory included.

    To be called outside the handler of the error, which holds every tensor of the failed call.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
