"""INT8 products on a CPU that has no instructions for them: the same integers, by float32 units.

`torch._int_mm` is slow on a CPU without VNNI, too slow to learn CIFAR-10 by: 1.1 against 38 billion
multiplications a second in float32 (`[4096, 576] @ [576, 64]` and two of `[1024, 1024]`, one core
of an AMD EPYC with AVX2, torch 2.13). But a float32 holds every integer up to 2^24, and a sum of
1040 products of codes stays below (127^2 * 1040 = 1.7e7), in whatever order it is taken. So a
product cut into runs of 1040, each by float32 units, then added as int32, is `_int_mm`'s bit for
bit.

This is for accuracy alone. A trial that asks for it (`--products float32-exact`) learns what INT8
would, and says in its record that it was not INT8 hardware; its times and its memory are not
INT8's, and are left out. The engines do not know of it: it takes the place of `torch._int_mm` in
the trial's own process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.spec import CODE_MAX

# The longest sum that no order of adding takes beyond what float32 counts one by one.
_LONGEST_SUM = 2**24 // CODE_MAX**2


def use_float32_units() -> None:
    """From now on, in this process, `torch._int_mm` is `exact_int_mm`."""
    torch._int_mm = exact_int_mm  # type: ignore[assignment]


def exact_int_mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`torch._int_mm` by float32 units.

    Args:
        a: int8 `[M, K]`, codes within 127.
        b: int8 `[K, N]`, likewise.
        out: int32 `[M, N]` to write the result to; None: memory of its own.

    Returns:
        int32 `[M, N]`.
    """
    total = None
    for start in range(0, a.shape[1], _LONGEST_SUM):
        run = slice(start, start + _LONGEST_SUM)
        part = (a[:, run].float() @ b[run].float()).to(torch.int32)
        total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError("a product needs something to sum over, got K = 0")
    return total if out is None else out.copy_(total)
