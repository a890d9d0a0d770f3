"""The rig itself: the real pycuda, on a driver that is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS, VERSION, PycudaRig, pycuda_rig

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)
__all__ = ["pycuda_rig"]  # a fixture, used by name


def in_child(rig: PycudaRig, code: str, **variables: str) -> str:
    environment = rig.environment() | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return (done.stdout + done.stderr).strip()


def test_it_is_the_released_pycuda_in_a_folder_of_its_own(pycuda_rig):
    code = "import pycuda, numpy; print(pycuda.VERSION_TEXT, pycuda.__file__, numpy.__file__)"
    version, pycuda_file, numpy_file = in_child(pycuda_rig, code).split()
    assert version == VERSION
    assert pycuda_file.startswith(str(pycuda_rig.site))
    assert not numpy_file.startswith(str(pycuda_rig.site))


def test_the_fake_driver_has_one_orin_and_memory_that_copies_reach(pycuda_rig):
    code = """
import numpy as np, pycuda.driver as cuda
cuda.init()
device = cuda.Device(0)
context = device.retain_primary_context()
context.push()
there = cuda.to_device(np.arange(5))
print(cuda.Device.count(), device.compute_capability(), cuda.from_device(there, 5, int).sum())
context.pop()
"""
    assert in_child(pycuda_rig, code) == "1 (8, 7) 10"


def test_without_a_device_it_says_so(pycuda_rig):
    said = in_child(pycuda_rig, "import pycuda.driver as c; c.init()", FAKE_CUDA_NODEV="1")
    assert "cuInit failed" in said


def test_without_a_context_allocation_fails_as_on_a_board(pycuda_rig):
    said = in_child(pycuda_rig, "import pycuda.driver as c; c.init(); c.mem_alloc(16)")
    assert "LogicError" in said
