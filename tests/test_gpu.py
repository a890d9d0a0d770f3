"""The GPU's memory and context, through the real pycuda on a fake driver and its stand-in."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from engines.gpu import GpuError, open_gpu
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS, pycuda_rig
from tests.fake_tensorrt import FakeDriver

__all__ = ["pycuda_rig"]
pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)


@pytest.fixture(params=["fake", "pycuda"])
def gpu(request, monkeypatch):
    if request.param == "fake":
        FakeDriver().enter(monkeypatch)
    else:
        request.getfixturevalue("pycuda_rig").enter()
    return open_gpu()


def test_it_says_which_gpu_it_is(gpu):
    assert gpu.name == "Orin (fake, host CPU)"
    assert gpu.compute_capability == "8.7"


def test_rows_go_there_and_come_back_and_the_rest_stays(gpu):
    with gpu.current():
        stream, there = gpu.stream(), gpu.buffer((8, 3), np.float32)
        there.host[:] = 7
        there.upload(8, stream)
        stream.wait()
        there.host[:5] = np.arange(15).reshape(5, 3)
        there.upload(2, stream)
        stream.wait()
        there.host[:] = 0
        there.download(8, stream)
        stream.wait()
        found = there.host.copy()
        there.close()
        stream.close()
    np.testing.assert_array_equal(found[:2], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found[2:], np.full((6, 3), 7))


def test_every_thread_has_the_context_while_it_asks(gpu):
    found: list[object] = []

    def ask(number: int) -> None:
        for _ in range(20):
            with gpu.current():
                stream, there = gpu.stream(), gpu.buffer((4,), np.int8)
                there.host[:] = number
                there.upload(4, stream)
                there.host[:] = 0
                there.download(4, stream)
                stream.wait()
                found.append(set(there.host.tolist()) == {number})
                there.close()
                stream.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [True] * 60


def test_outside_of_a_call_no_context_is_left_behind(gpu):
    with gpu.current(), gpu.current():
        gpu.buffer((1,), np.int8).close()
    with pytest.raises(RuntimeError, match="of its own"), gpu.current():
        raise RuntimeError("of its own")  # passes through, and the context goes all the same
    driver = gpu._driver
    with pytest.raises(driver.LogicError, match=r"invalid device context|FAKE|fake"):
        driver.mem_alloc(16)


def test_a_fault_of_the_driver_is_one_kind_of_error(gpu):
    driver = gpu._driver

    def allocate_without_context() -> None:
        driver.Context.pop()
        try:
            driver.mem_alloc(16)
        finally:
            gpu._context.push()

    with pytest.raises(GpuError, match="CUDA: "), gpu.current():
        allocate_without_context()
    with gpu.current():
        gpu.buffer((1,), np.int8).close()


def test_memory_is_given_back_by_another_thread_than_took_it(gpu, capfd):
    with gpu.current():
        stream, there = gpu.stream(), gpu.buffer((8, 3), np.float32)

    def give_back() -> None:
        with gpu.current():
            there.close()
            there.close()  # twice is harmless
            stream.close()

    thread = threading.Thread(target=give_back)
    thread.start()
    thread.join(30)
    gc.collect()
    assert capfd.readouterr().err == ""  # where pycuda tells of what it could not free


def test_without_a_device_it_is_an_import_error(monkeypatch):
    driver = FakeDriver()
    driver.device = False
    driver.enter(monkeypatch)
    with pytest.raises(ImportError, match="no GPU 0: cuInit failed: no CUDA-capable device"):
        open_gpu()


def test_without_pycuda_it_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(ImportError, match=r"pycuda unavailable: .*pycuda"):
        open_gpu()


def test_want_of_memory_gives_back_the_half_that_was_had(monkeypatch):
    driver = FakeDriver()
    driver.enter(monkeypatch)
    gpu = open_gpu()
    driver.memory_left = 150
    with pytest.raises(GpuError, match="out of memory"), gpu.current():
        gpu.buffer((100,), np.int8)
    assert driver.allocated == 0


def test_the_stand_in_has_no_name_that_pycuda_lacks(pycuda_rig):
    pycuda_rig.enter()
    import pycuda.driver as real

    ours = vars(FakeDriver().module)
    for name, value in ours.items():
        if name.startswith("__"):
            continue
        assert hasattr(real, name), name
        if not isinstance(value, type):
            continue
        if issubclass(value, Exception):
            assert issubclass(getattr(real, name), real.Error)
        for member in vars(value):
            assert member.startswith("__") or hasattr(getattr(real, name), member), member
    assert hasattr(real.DeviceAllocation, "free")
    assert hasattr(real.PagelockedHostAllocation, "free")
