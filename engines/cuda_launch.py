"""Tensors as a kernel's arguments: checked, since a kernel reads whatever its addresses say."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from engines.cuda_driver import KernelError
from engines.gpu import Axes

# As engines/kernels/numeric.cuh has them.
THREADS = 256
CHANNEL_LANES, PIXEL_LANES = 32, 8
# Kernels count elements in 32 bits.
_MOST_ELEMENTS = 2**31 - 1


class Driver(Protocol):
    """What starts kernels: see `engines.cuda_driver.CudaDriver.launch`."""

    def launch(self, name: str, grid: Axes, block: Axes, *arguments: float | None) -> None:
        """Start a kernel."""


class Launcher:
    """Starts kernels on tensors of one kind of device.

    Args:
        driver: Starts them.
        device: `cuda`. (`cpu` for a driver whose device memory is the host's: the tests'.)
    """

    def __init__(self, driver: Driver, device: str = "cuda") -> None:
        self._driver = driver
        self._device = device

    def elements(self, name: str, count: int, *arguments: Tensor | float | None) -> None:
        """Run a kernel with a thread for each of `count` elements."""
        self.blocks(name, (-(-count // THREADS), 1, 1), (THREADS, 1, 1), *arguments)

    def rows(self, name: str, rows: int, *arguments: Tensor | float | None) -> None:
        """Run a kernel with a block for each of `rows` rows."""
        self.blocks(name, (rows, 1, 1), (THREADS, 1, 1), *arguments)

    def pixels(self, name: str, shape: torch.Size, *arguments: Tensor | float | None) -> None:
        """Run a kernel over the channels and pixels of each sample of `[B, H, W, C]`."""
        grid = -(-shape[3] // CHANNEL_LANES), shape[0], 1
        self.blocks(name, grid, (CHANNEL_LANES, PIXEL_LANES, 1), *arguments)

    def blocks(self, name: str, grid: Axes, block: Axes, *arguments: Tensor | float | None) -> None:
        """Run a kernel with these blocks; see `engines.cuda_driver.CudaDriver.launch`.

        Raises:
            KernelError: torch's current stream is not the default one, or the driver refuses.
        """
        if self._device == "cuda" and torch.cuda.current_stream().cuda_stream:
            raise KernelError(
                f"kernel {name} runs on the default stream, and torch's current stream is another; "
                "wanted no torch.cuda.stream around a chain"
            )
        values = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        self._driver.launch(name, grid, block, *values)

    def checked(
        self, what: str, tensor: Tensor, dtype: torch.dtype, *shape: int, strided: bool = False
    ) -> Tensor:
        """`tensor`, which a kernel may read.

        Args:
            what: Its name in messages.
            tensor: Any.
            dtype: Wanted.
            shape: Wanted; -1: any size. None at all: any shape.
            strided: Whether its elements may lie apart.

        Raises:
            TypeError: It has another dtype.
            ValueError: It lies on another device, has another shape, is not contiguous, is empty
                or too large.
        """
        if tensor.device.type != self._device:
            raise ValueError(f"{what} is on {tensor.device}; wanted {self._device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{what} is {tensor.dtype}; wanted {dtype}")
        if shape and not (
            tensor.ndim == len(shape)
            and all(wanted in (-1, size) for size, wanted in zip(tensor.shape, shape, strict=True))
        ):
            raise ValueError(f"{what} has shape {[*tensor.shape]}; wanted {[*shape]}")
        if not (strided or tensor.is_contiguous()):
            raise ValueError(f"{what} is not contiguous: its strides are {[*tensor.stride()]}")
        if not 0 < tensor.numel() <= _MOST_ELEMENTS:
            raise ValueError(
                f"{what} has {tensor.numel()} elements; wanted 1 to {_MOST_ELEMENTS}, which 32 "
                "bits count: split the batch"
            )
        return tensor

    def empty(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor that a kernel writes.

        Raises:
            ValueError: It would be too large.
        """
        if math.prod(shape) > _MOST_ELEMENTS:
            raise ValueError(f"a result of {[*shape]} is more than 32 bits count: split the batch")
        return torch.empty(shape, dtype=dtype, device=self._device)
