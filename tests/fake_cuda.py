"""A CUDA device that computes nothing, to see where tensors lie: torch's own `FakeTensorMode`.

Its tensors have a shape, a dtype, strides and a device, and no values; an operation on tensors of
two devices raises, as it would on the board. What it does not know, and a GPU alone can tell:
whether a kernel exists for these dtypes, what it gives, and what it costs.

`Watch` sees every operation before that. It answers what the host asks of a tensor (a loss), and
keeps a record of these questions, of copies between devices, and of the integer products.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from engines import rounding, torch_train
from engines.device import Device
from models.build import build_model

FAKE = Device("cuda:0", "a device that computes nothing")
# torch's own guard that does nothing, which `FakeTensorMode` uses where a torch with CUDA finds no
# GPU. A torch without CUDA has none in its place, and could not even slice a tensor that is said to
# lie on a GPU.
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>)
}
"""
_ENGINES = Path(rounding.__file__).parent


@functools.cache
def refusal() -> str | None:
    """Why there can be no such device here; None where there is one."""
    if torch.version.cuda is not None:
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return "a torch without CUDA needs a C++ compiler (CXX, or c++) for a device guard"
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(_GUARD)
        subprocess.run(
            [
                compiler, "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}",
                f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
                str(source), "-o", str(library), f"-L{root / 'lib'}", "-lc10",
            ],
            check=True,
        )  # fmt: skip
        torch.ops.load_library(str(library))
    return None


class Watch(TorchDispatchMode):
    """What passes between host and device, and what is multiplied.

    `reads`: the function of the engines that asked for a value; `copies`: (from, to, elements);
    `products`: operands and result of each integer product, which have layouts and no values;
    `operations`: their names, those on the host aside; `numbers`: those of them that take a tensor
    `[]` of the host; `on_host`: elements of the largest tensor that was computed on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[tuple[str, str, int]] = []
        self.products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.operations: set[str] = set()
        self.numbers: set[str] = set()
        self.on_host = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads.append(_asking())
            return 0.5 if args[0].is_floating_point() else 1
        devices = [arg.device.type for arg in args if isinstance(arg, torch.Tensor)]
        if func.namespace == "aten" and devices != ["cpu"] * len(devices):
            self.operations.add(str(func).removeprefix("aten."))
            if "cpu" in devices and "cuda" in devices:
                self.numbers.add(func.overloadpacket.__name__)
        if func is torch.ops.aten._fused_sgd_.default:  # which torch cannot run without values
            assert {str(tensor.device) for part in args[:3] for tensor in part} == {FAKE.name}
            return None
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            before = args[1] if name == "copy_" else args[0]
            if before.device != result.device:
                self.copies.append((before.device.type, result.device.type, result.numel()))
        elif name == "_int_mm":
            self.products.append((*args, result))
        elif name != "lift_fresh" and getattr(result, "device", None) == torch.device("cpu"):
            self.on_host = max(self.on_host, result.numel())
        return result

    def forget(self) -> None:
        self.on_host = 0
        for seen in (self.reads, self.copies, self.products, self.operations, self.numbers):
            seen.clear()


def _asking() -> str:
    """The innermost function of the engines on the stack."""
    frame = sys._getframe()
    while frame is not None:
        if Path(frame.f_code.co_filename).parent == _ENGINES:
            return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def _ones(tensor: torch.Tensor, *args, **kwargs):
    """`Tensor.numpy`: torch has none for fake tensors. As the true one, not for the GPU's."""
    if not isinstance(tensor, FakeTensor):
        return torch._C.TensorBase.numpy(tensor, *args, **kwargs)
    if tensor.device.type != "cpu":
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return np.ones(tensor.shape, str(tensor.dtype).removeprefix("torch."))


def _drawn(spec, seed):
    """`build_model`, of true weights: torch cannot empty modules that are made of fake ones."""
    with unset_fake_temporarily():
        return build_model(spec, seed)


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Within it every tensor is fake, and `FAKE` is a device."""
    if (why := refusal()) is not None:
        pytest.skip(why)
    caches = (rounding._row_hashes, rounding._column_hashes)
    with contextlib.ExitStack() as undo:
        patch = undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.Tensor, "numpy", _ones)
        patch.setattr(torch_train, "build_model", _drawn)
        for cache in caches:  # fake tensors do not leave the test, nor true ones enter it
            cache.cache_clear()
            undo.callback(cache.cache_clear)
        undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield undo.enter_context(Watch())
