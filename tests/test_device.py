"""Which device an engine computes on: by name or the GPU that proves itself, with the reason told.

There is no GPU here (or there is, and tests/test_cuda.py runs on it): torch's answers about one are
put in their place, each with the signature of the true function.
"""

from __future__ import annotations

import warnings
from unittest.mock import create_autospec

import pytest
import torch

from engines import (
    EngineUnavailableError,
    Recipe,
    device,
    open_predict_engine,
    open_train_engine,
)
from engines.device import HOST, Device, DeviceUnavailableError, open_device
from engines.int8 import int8_matmul
from engines.torch_train import TorchTrainEngine
from tests.contracts import SPEC


class Gpu:
    """A GPU as torch tells of it; its one kernel runs on the CPU, or fails as `fails` says."""

    def __init__(self, monkeypatch) -> None:
        self.fails: str | None = None
        self.off_by = 0
        ones = torch.ones
        answers = {
            "is_available": True,
            "get_device_name": "Orin",
            "get_device_capability": (8, 7),
            "get_arch_list": ["sm_80", "sm_90"],
            "set_per_process_memory_fraction": None,
        }
        for name, answer in answers.items():
            function = create_autospec(getattr(torch.cuda, name), return_value=answer)
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size, dtype=dtype))
        monkeypatch.setattr(device, "int8_matmul", self._multiply)

    def _multiply(self, a, b):
        if self.fails:
            raise RuntimeError(self.fails)
        return int8_matmul(a, b) + self.off_by


@pytest.fixture(autouse=True)
def _asked_anew():
    device._refusal.cache_clear()
    yield
    device._refusal.cache_clear()


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    return Gpu(monkeypatch)


def test_the_cpu_by_name_asks_no_gpu(monkeypatch):
    monkeypatch.setattr(device, "_refusal", None)  # to call it would raise
    assert open_device("cpu") is HOST


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="device 'tpu' is unknown; known: auto, cpu, cuda"):
        open_device("tpu")


def test_a_torch_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = f"torch {torch.__version__} is built without CUDA"
    assert open_device() == Device("cpu", reason)
    with pytest.raises(DeviceUnavailableError, match=r"cannot be had: torch .* built"):
        open_device("cuda")


def test_no_gpu_is_told_with_what_torch_says_of_it(gpu, monkeypatch):
    def none() -> bool:
        warnings.warn("the NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", none)
    opened = open_device()
    assert opened.name == "cpu"
    wanted = f"torch {torch.__version__} finds no GPU: the NVIDIA driver on your system is too old"
    assert opened.reason == wanted


def test_a_gpu_that_multiplies_is_taken(gpu):
    assert open_device() == Device("cuda", "Orin, an INT8 product on it is right")
    assert open_device("cuda") == Device("cuda", "Orin, asked for by name")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors",
        "CUDA error: device kernel image is invalid: invalid device function",
    ],
)
def test_a_torch_without_code_for_the_gpu_is_told_what_it_has_code_for(gpu, said):
    gpu.fails = said
    opened = open_device()
    assert opened.name == "cpu"
    first = said.splitlines()[0]
    assert opened.reason == (
        f"{first}: torch {torch.__version__} has code for sm_80 sm_90, the GPU needs sm_87; "
        "install a torch that was built for it"
    )
    with pytest.raises(DeviceUnavailableError, match="the GPU needs sm_87"):
        open_device("cuda")


def test_another_failure_of_the_first_kernel_is_told_as_it_is(gpu):
    gpu.fails = "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`\nmore"
    assert open_device().reason == gpu.fails.splitlines()[0]


def test_a_gpu_that_multiplies_wrongly_is_not_taken(gpu):
    gpu.off_by = 1
    assert open_device() == Device("cpu", "INT8 products on Orin are wrong")


def test_the_share_of_memory_is_set_on_a_gpu_only(gpu):
    limit = torch.cuda.set_per_process_memory_fraction
    open_device("cpu", memory_ratio=0.5)
    open_device("cuda")
    limit.assert_not_called()
    assert open_device(memory_ratio=0.5).reason.endswith("; at most 50% of its memory")
    limit.assert_called_once_with(0.5)


# --- what the registry and the engines make of it -------------------------------------------------


def test_engines_say_where_they_compute_and_why(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    why = f"on cpu (torch {torch.__version__} is built without CUDA)"
    assert why in open_predict_engine("torch", device="auto").reason
    assert open_train_engine(SPEC, seed=0, device="auto").description.startswith(f"torch {why}, ")
    assert "on cpu (asked for by name)" in open_train_engine(SPEC, seed=0).description


def test_an_engine_on_a_gpu_says_so(gpu):
    opened = open_device(memory_ratio=0.5)
    engine = TorchTrainEngine(SPEC, seed=0, recipe=Recipe(), device=Device("cpu", opened.reason))
    assert "(Orin, an INT8 product on it is right; at most 50% of its memory)" in engine.description
    assert "on cuda (Orin, asked for by name)" in open_predict_engine("torch", device="cuda").reason


def test_a_gpu_asked_for_by_name_is_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineUnavailableError, match="device 'cuda' cannot be had"):
        open_train_engine(SPEC, seed=0, device="cuda")
    with pytest.raises(EngineUnavailableError, match="torch: device 'cuda' cannot be had"):
        open_predict_engine("torch", device="cuda")
