"""A launcher whose kernels run: through the real pycuda and a fake driver, on this CPU."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from engines.cuda_driver import CudaDriver
from engines.cuda_launch import Launcher
from tests.cuda_rig.host_kernels import build_host_kernels
from tests.cuda_rig.pycuda_build import PycudaRig, pycuda_rig

__all__ = ["cuda_driver", "launcher", "pycuda_rig"]


@pytest.fixture(scope="session")
def cuda_driver(pycuda_rig, tmp_path_factory) -> CudaDriver:
    """The driver as a board has it, kernels compiled by the real nvcc."""
    return _opened(pycuda_rig, tmp_path_factory.getbasetemp() / "kernels")


@functools.cache  # each test file that imports the fixture has it anew
def _opened(rig: PycudaRig, folder: Path) -> CudaDriver:
    folder.mkdir()
    rig.enter()
    # Read by the fake driver when the kernels are looked up.
    os.environ["FAKE_CUDA_KERNELS"] = str(build_host_kernels(folder))
    return CudaDriver(folder / "cache")


@pytest.fixture(scope="session")
def launcher(cuda_driver) -> Launcher:
    """With the fake driver, memory of the CPU is the device's."""
    return Launcher(cuda_driver, "cpu")
