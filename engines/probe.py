"""Whether this machine computes as it should: small products, done and compared.

For `ffedge doctor`. Each probe answers with a finding and raises nothing that its subject is known
to raise.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engines.device import CUDA, DeviceUnavailableError, open_device
from engines.finding import Finding, Verdict
from engines.fusion import AUTO, COMPILED, open_fusion
from engines.int8 import int8_matmul, slow_products

# The board's GPU: compute capability 8.7.
BOARD_CAPABILITY = (8, 7)
_ROUNDS = 9


def integer_products() -> Finding:
    """An INT8 product of odd shape against the same in 64-bit integers."""
    a, b = _codes(37, 523), _codes(523, 71)
    wrong = int((int8_matmul(a, b) != a.long() @ b.long()).sum())
    found = f"torch {torch.__version__}, [37, 523] @ [523, 71] in int8"
    if wrong:
        return Finding("INT8 product", "FAIL", f"{found}: {wrong} of {37 * 71} elements are wrong")
    return Finding("INT8 product", "PASS", f"{found}, exact")


def integer_speed(device: str = "cpu") -> Finding:
    """How fast an INT8 product is against a float32 one, [256, 1024] @ [1024, 1024]."""
    a, b = _codes(256, 1024).to(device), _codes(1024, 1024).t().contiguous().t().to(device)
    integer = _median_seconds(lambda: int8_matmul(a, b), device)
    x, y = a.float(), b.float()
    ratio = _median_seconds(lambda: x @ y, device) / integer
    found = f"an INT8 product is {ratio:.2f} times as fast as a float32 one"
    name = f"INT8 speed on {device}"
    if ratio < 1:
        why = slow_products() if device == "cpu" else None
        return Finding(name, "WARN", f"{found} ({why or 'wanted: faster'})")
    return Finding(name, "PASS", found)


def fusion() -> Finding:
    """Whether chains can be compiled here; the compiler's files are removed again."""
    caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in caches}
    with tempfile.TemporaryDirectory(prefix="ffedge-doctor-") as folder:
        os.environ.update(dict.fromkeys(caches, folder))
        try:
            mode = open_fusion(AUTO)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    if mode.name == COMPILED:
        return Finding("fusion", "PASS", f"{mode.reason}: learner.fusion may be compiled")
    return Finding("fusion", "WARN", f'{mode.reason}; learner.fusion = "eager" is what runs')


def cuda(*, board: bool) -> list[Finding]:
    """The GPU: found, of the kind that torch holds code for, and multiplying integers rightly.

    Args:
        board: Whether this is a Jetson, where a GPU is wanted.
    """
    try:
        device = open_device(CUDA)
    except DeviceUnavailableError as error:
        absent: Verdict = "FAIL" if board else "SKIP"
        return [Finding("CUDA", absent, f"{error} (see docs/jetson.md)")]
    capability, codes = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    found = f"{device.reason}, capability {capability}, torch has code for {', '.join(codes)}"
    if capability == BOARD_CAPABILITY and "sm_87" not in codes:
        kernel = Finding("CUDA", "FAIL", f"{found} (wanted: sm_87, see docs/jetson.md)")
    else:
        kernel = Finding("CUDA", "PASS", f"{found}; an INT8 product on it is right")
    return [kernel, integer_speed(CUDA), integer_shapes(CUDA)]


def integer_shapes(device: str) -> Finding:
    """Our products of small and odd shapes against the CPU's; and which torch itself refuses.

    On CUDA it wants more than 16 rows and sizes that are multiples of 8; we pad to that.
    """
    name, refused = f"INT8 shapes on {device}", []
    for rows in (1, 16, 17, 32):
        for size in (8, 12):
            a, b = _codes(rows, size), _codes(size, size)
            x, y = a.to(device), b.to(device)
            shape = f"[{rows}, {size}] @ [{size}, {size}]"
            try:
                torch._int_mm(x, y)
            except RuntimeError:
                refused.append(shape)
            if not torch.equal(int8_matmul(x, y).cpu().long(), a.long() @ b.long()):
                return Finding(name, "FAIL", f"{shape} is wrong")
    alone = f"; torch alone refuses {', '.join(refused)}" if refused else ""
    return Finding(name, "PASS", f"exact, padded where needed{alone}")


def _codes(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)


def _median_seconds(work: Callable[[], Tensor], device: str) -> float:
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])  # the first ones load code and warm the caches
