"""Where an engine's tensors live: on the GPU where one computes, else on the CPU.

The device is chosen when an engine opens, never later, and reported with its reason. Only what
comes in from NumPy and the first tensors of an engine are told it; every other tensor is made like
one at hand (`new_zeros`, `zeros_like`), and so lies beside it. Single numbers that kernels take as
arguments (a rate, a noise key) stay on the host in tensors `[]`, so that no copy and no wait lies
between two kernels; a step waits for the GPU where it reads its losses, and nowhere else.

A GPU counts when an INT8 product on it is right: a torch without code for the GPU at hand imports,
and finds the GPU, and fails at its first kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.int8 import int8_matmul

DEVICE_NAMES = ("auto", "cpu", "cuda")
AUTO, CPU, CUDA = DEVICE_NAMES
# What CUDA says where a library has no code for the GPU.
_NO_CODE = ("no kernel image", "invalid device function", "not compatible")


class DeviceUnavailableError(RuntimeError):
    """The device that was asked for by name cannot be had here."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device and how it came to be chosen.

    Args:
        name: As torch has it.
        reason: Why.
    """

    name: str
    reason: str


HOST = Device(CPU, "asked for by name")


def open_device(name: str = AUTO, *, memory_ratio: float = 1.0) -> Device:
    """The device for an engine.

    Args:
        name: One of `DEVICE_NAMES`.
        memory_ratio: Share of the GPU's memory that torch may take in this process, in (0, 1].

    Raises:
        ValueError: The name is unknown.
        DeviceUnavailableError: `cuda` was asked for and does not compute; the message says why.
    """
    if name not in DEVICE_NAMES:
        raise ValueError(f"device {name!r} is unknown; known: {', '.join(DEVICE_NAMES)}")
    if name == CPU:
        return HOST
    refusal = _refusal()
    if refusal is not None:
        if name == CUDA:
            raise DeviceUnavailableError(f"device 'cuda' cannot be had: {refusal}")
        return Device(CPU, refusal)
    why = "asked for by name" if name == CUDA else "an INT8 product on it is right"
    if memory_ratio < 1.0:
        torch.cuda.set_per_process_memory_fraction(memory_ratio)
        why += f"; at most {memory_ratio:.0%} of its memory"
    return Device(CUDA, f"{torch.cuda.get_device_name()}, {why}")


def to_device(array: NDArray[np.generic], device: torch.device | str) -> Tensor:
    """An array as a tensor, not copied where the device is the CPU.

    The copy to a GPU does not wait for it: memory that is not page-locked is read before the call
    is over.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


def to_host(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array, not copied where it lies on the CPU; waits for a GPU."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


@functools.cache
def _refusal() -> str | None:
    """Why no GPU computes here; None where one does."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = "; ".join(str(warning.message).strip() for warning in warned)
        return f"torch {torch.__version__} finds no GPU" + (f": {said}" if said else "")
    try:
        ones = torch.ones(32, 32, dtype=torch.int8, device=CUDA)
        right = bool((int8_matmul(ones, ones) == 32).all())
    except RuntimeError as error:
        return _told(error)
    return None if right else f"INT8 products on {torch.cuda.get_device_name()} are wrong"


def _told(error: RuntimeError) -> str:
    first = str(error).strip().splitlines()[0]
    if not any(words in str(error) for words in _NO_CODE):
        return first
    major, minor = torch.cuda.get_device_capability()
    return (
        f"{first}: torch {torch.__version__} has code for {' '.join(torch.cuda.get_arch_list())}, "
        f"the GPU needs sm_{major}{minor}; install a torch that was built for it"
    )
