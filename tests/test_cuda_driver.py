"""Compiling and launching: what is kept, and a clear message for all that can be missing."""

from __future__ import annotations

import shutil
import struct
import sys
import threading
from pathlib import Path

import pytest
import torch

from engines import cuda_driver as driver_module
from engines.cuda_driver import (
    CudaDriver,
    KernelError,
    KernelsUnavailableError,
    kernel_signatures,
    kernel_source,
)
from engines.cuda_kernels import absmax_scale, quantize, row_scales
from engines.cuda_launch import Launcher
from tests.cuda_rig.kernel_fixtures import cuda_driver, launcher, pycuda_rig
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS

__all__ = ["cuda_driver", "launcher", "pycuda_rig"]  # fixtures, used by name

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)


def compiler(folder: Path, body: str) -> str:
    """An nvcc that answers its version and then does `body`."""
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo release 99 && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


# --- compiling, once ------------------------------------------------------------------------------


def test_what_was_compiled_is_kept_and_used_again(cuda_driver, tmp_path):
    cache, count = tmp_path / "cache", tmp_path / "count"
    nvcc = compiler(tmp_path, f'echo once >> {count}; exec {shutil.which("nvcc")} "$@"')
    for _ in range(2):
        assert CudaDriver(cache, nvcc=nvcc).architecture == "sm_87"
    assert count.read_text() == "once\n"
    (cubin,) = cache.iterdir()
    assert cubin == driver_module._cubin_path(cache, "sm_87", "release 99\n")


def test_a_file_that_does_not_load_is_compiled_anew_at_the_next_start(cuda_driver, tmp_path):
    CudaDriver(tmp_path)
    (cubin,) = tmp_path.iterdir()
    compiled = cubin.read_bytes()
    cubin.write_bytes(bytes(len(compiled)))
    with pytest.raises(KernelsUnavailableError, match=r"the driver does not load what nvcc"):
        CudaDriver(tmp_path)
    CudaDriver(tmp_path)
    assert cubin.read_bytes()[:4] == compiled[:4] == b"\x7fELF"


def test_another_source_compiler_or_architecture_is_another_file(tmp_path, monkeypatch):
    names = [
        driver_module._cubin_path(tmp_path, "sm_87", "13.0"),
        driver_module._cubin_path(tmp_path, "sm_87", "12.6"),
        driver_module._cubin_path(tmp_path, "sm_110", "13.0"),
    ]
    assert names[0] == driver_module._cubin_path(tmp_path, "sm_87", "13.0")
    source = kernel_source()
    monkeypatch.setattr(driver_module, "kernel_source", lambda: source + "\n// changed")
    names.append(driver_module._cubin_path(tmp_path, "sm_87", "13.0"))
    monkeypatch.setattr(driver_module, "OPTIONS", ("-fmad=true",))
    names.append(driver_module._cubin_path(tmp_path, "sm_87", "13.0"))
    assert len(set(names)) == 5


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "a.cubin"

    def power_cut(handle):
        raise OSError("no power")

    monkeypatch.setattr(driver_module.os, "fsync", power_cut)
    with pytest.raises(OSError, match="no power"):
        driver_module._keep(target, b"half")
    assert not list(target.parent.iterdir())


# --- what can be missing --------------------------------------------------------------------------


def test_without_pycuda(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(KernelsUnavailableError, match=r"^pycuda unavailable: "):
        CudaDriver(tmp_path)


def test_without_a_device(cuda_driver, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CUDA_NODEV", "1")
    with pytest.raises(KernelsUnavailableError, match=r"^no GPU 0: .*cuInit"):
        CudaDriver(tmp_path)


def test_without_the_device_that_was_asked_for(cuda_driver, tmp_path):
    with pytest.raises(KernelsUnavailableError, match=r"^no GPU 3: "):
        CudaDriver(tmp_path, device=3)


def test_without_a_compiler(cuda_driver, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailableError, match=r"^there is no nvcc .*: put that on PATH$"):
        CudaDriver(tmp_path)


def test_when_it_does_not_compile(cuda_driver, tmp_path):
    nvcc = compiler(tmp_path, "echo 'note: x' >&2; echo 'kernel.cu(3): error: bad' >&2; exit 2")
    with pytest.raises(KernelsUnavailableError) as raised:
        CudaDriver(tmp_path / "cache", nvcc=nvcc)
    assert str(raised.value) == (
        f"{nvcc} does not compile our kernels for sm_87: kernel.cu(3): error: bad"
    )
    assert not (tmp_path / "cache").exists()


def test_when_the_driver_does_not_load_it(cuda_driver, tmp_path):
    nvcc = compiler(tmp_path, "echo not a cubin > kernel.cubin")
    with pytest.raises(
        KernelsUnavailableError, match=r"driver does not load what .* no newer than"
    ):
        CudaDriver(tmp_path / "cache", nvcc=nvcc)


# --- launching ------------------------------------------------------------------------------------


def test_every_thread_may_launch_and_none_is_left_with_a_context(cuda_driver, launcher):
    import pycuda.driver as cuda

    scales, contexts = [], []

    def work():
        scales.append(absmax_scale(launcher, torch.full((3,), 254.0)).item())
        try:
            cuda.mem_alloc(16)
        except cuda.LogicError as error:
            contexts.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scales == [2.0] * 3
    assert len(contexts) == 3  # of the thread's own there is none


def test_what_the_driver_refuses_names_the_kernel(cuda_driver):
    with pytest.raises(KernelError, match=r"^kernel row_scales could not be launched: "):
        cuda_driver.launch("row_scales", (1, 1, 1), (2048, 1, 1), 0, 0, 1)


@pytest.mark.parametrize("arguments", [(0, 0), (0, 0, 2**31), (0, 0, 1.5)])
def test_arguments_that_are_not_the_kernels(cuda_driver, arguments):
    with pytest.raises(KernelError, match=r"^kernel row_scales cannot be given "):
        cuda_driver.launch("row_scales", (1, 1, 1), (256, 1, 1), *arguments)


def test_a_kernel_has_the_arguments_that_its_source_lists():
    signatures = kernel_signatures()
    assert signatures["dense_rows"] == "PPPPPPif"
    assert signatures["small_product"] == "PPPiii"
    # An integer between pointers takes the place of one.
    assert struct.calcsize(signatures["move_rows"]) == 17 * 8 + 4


# --- tensors as arguments -------------------------------------------------------------------------


def test_tensors_that_a_kernel_would_misread(launcher):
    x = torch.ones(4, 6)
    for tensor, error, message in (
        (x.double(), TypeError, r"^x is torch.float64; wanted torch.float32$"),
        (x[0], ValueError, r"^x has shape \[6\]; wanted \[-1, -1\]$"),
        (x.t(), ValueError, r"^x is not contiguous: its strides are \[1, 6\]$"),
        (x[:0], ValueError, r"^x has 0 elements; wanted 1 to 2147483647, .*: split the batch$"),
        (x[:, :1].expand(4, 2**30), ValueError, "^x is not contiguous"),
        (x.to("meta"), ValueError, "^x is on meta; wanted cpu$"),
    ):
        with pytest.raises(error, match=message):
            row_scales(launcher, tensor)
    with pytest.raises(ValueError, match=r"^scale has shape \[6\]; wanted \[4, 1\]$"):
        quantize(launcher, x, torch.ones(6))


def test_more_elements_than_32_bits_count_are_refused():
    on = Launcher(driver=None, device="meta")
    for what, rows in (("x has 2147483648 elements", 2**31), ("x has 4294967296", 2**32)):
        with pytest.raises(ValueError, match=f"^{what}"):
            row_scales(on, torch.empty(rows, 1, device="meta"))
    with pytest.raises(ValueError, match=r"^a result of \[65536, 32768\] is more than 32 bits"):
        on.empty(torch.int8, 2**16, 2**15)


def test_on_a_board_a_tensor_of_the_cpu_is_refused(cuda_driver):
    with pytest.raises(ValueError, match=r"^x is on cpu; wanted cuda$"):
        row_scales(Launcher(cuda_driver), torch.ones(4, 6))


@pytest.mark.parametrize("stream", [0, 0x5EED])
def test_only_the_default_stream_is_launched_on(monkeypatch, stream):
    class Stream:
        cuda_stream = stream

    class Recorder:
        launched = 0

        def launch(self, name, grid, block, *arguments):
            self.launched += 1

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    recorder = Recorder()
    on = Launcher(recorder, "cuda")
    if stream:
        with pytest.raises(KernelError, match=r"runs on the default stream.*no torch.cuda.stream"):
            on.rows("row_scales", 1)
    else:
        on.rows("row_scales", 1)
    assert recorder.launched == (not stream)
