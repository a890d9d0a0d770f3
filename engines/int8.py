"""Symmetric INT8: quantize, and multiply integers as integers.

Quantize: `s = absmax / 127`, `q = clip(round(x / s), -127, 127)`, `x_hat = s q`. The code -128 is
never used, so that negation is exact and the overflow bound below is tight. A tensor of zeros gets
scale 1 and codes 0. Nearest rounding is to even, as IEEE 754 has it.

Multiply: int8 x int8 -> int32, through `torch._int_mm`. On CUDA that kernel demands more than 16
rows and an inner and outer size that are multiples of 8; both hold on the CPU here too, so that a
run on a laptop cannot pass where the board fails. Smaller or odd shapes are padded with zero codes
in this one place; zero codes add nothing, so the padded result is exact. On CUDA both operands are
laid along the contracted axis besides, by a copy where they lie otherwise (E^T A has two): every
cuBLASLt kernel takes that order, and torch warns of others. The CPU's takes any at full speed.

Differs from the paper (FF-INT8, arXiv 2506.22771v1, section IV): it rounds the layer input
stochastically; here activations and weights round to nearest and only errors round stochastically.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library, register_fake
from torch.nn.functional import pad

from engines.rounding import DRAW_BITS
from models.spec import CODE_MAX, CONTRACTION_MAX

# Its reciprocal is still a float32.
_SMALLEST_SCALE = 1e-37
_MIN_ROWS = 17
_MULTIPLE = 8


class QTensor(NamedTuple):
    """A quantized tensor: `codes * scale` is what it stands for.

    Args:
        codes: int8 in [-127, 127] (in FP32 precision: the float values themselves).
        scale: float32, of a shape that broadcasts against `codes`.
    """

    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 of the shape of `codes`."""
        return self.codes * self.scale


def absmax_scale(x: Tensor, dim: int | None = None) -> Tensor:
    """Scale that maps the largest magnitude to code 127.

    Args:
        x: float32.
        dim: Axis along which elements share a scale; None: the whole tensor shares one.

    Returns:
        float32, `[]` or the shape of `x` with `dim` of size 1; 1 where everything is zero.
    """
    if dim is None:
        low, high = torch.aminmax(x)
    else:
        # Two calls: along an axis torch's aminmax is not vectorised, and 10 times slower than both.
        low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    return scale_of(torch.maximum(high, -low))


def scale_of(absmax: Tensor) -> Tensor:
    """Scale under which `absmax` has code 127; 1 where it is zero (or too small to divide by)."""
    scale = absmax * (1.0 / CODE_MAX)
    return torch.where(scale < _SMALLEST_SCALE, 1.0, scale)


def quantize(x: Tensor, scale: Tensor, noise: Tensor | None = None) -> QTensor:
    """Codes of `x` under a given scale; what lies beyond 127 scales is clipped.

    Args:
        x: float32.
        scale: float32 that broadcasts against `x`, positive.
        noise: Draws for stochastic rounding (engines/rounding.py), int32 of the shape of `x`; None:
            nearest.

    Returns:
        int8 codes of the shape of `x`, with `scale` as given.
    """
    steps = (x * scale.reciprocal()).clamp(-CODE_MAX, CODE_MAX)
    return QTensor(round_steps(steps, noise).to(torch.int8), scale)


def round_steps(
    steps: Tensor, noise: Tensor | None = None, limit: int = CODE_MAX, bits: int = DRAW_BITS
) -> Tensor:
    """Codes, not yet narrowed, of values that count steps of their scale already.

    Differs from `quantize` in that the scale is one that `steps` was measured for, so that at most
    a rounding error lies beyond 127: integers are clipped, a third of the time of floats.

    Args:
        steps: float32, magnitudes below 2^31, stochastically 2^(31 - bits): beyond it they would
            lose their sign.
        noise: As for `quantize`, of which the highest bits are used.
        limit: Largest magnitude of a code.
        bits: Of a step's fraction that a draw decides on.

    Returns:
        int32 of the shape of `steps`.
    """
    if noise is None:
        codes = steps.round().to(torch.int32)
    else:
        draw = noise >> (DRAW_BITS - bits)
        codes = ((steps * float(1 << bits)).round().to(torch.int32) + draw) >> bits
    return codes.clamp(-limit, limit)


class Scratch:
    """Memory for one large temporary, used again at every step.

    The allocator tends to give a fresh 4 MB tensor new pages, up to a thousand faults each time.

    Args:
        dtype: Of the tensors it gives.
        device: Where they lie.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def take(self, *shape: int) -> Tensor:
        """An uninitialised tensor, good until the next call."""
        size = math.prod(shape)
        if self._memory.numel() < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


def slow_products() -> str | None:
    """Why `torch._int_mm` is slow on this CPU, where it is known to be; None else."""
    # Newer than the oldest torch that we run on.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    vnni = ("avx512_vnni", "avx_vnni", "avx_vnni_int8")
    if capabilities.get("architecture") != "x86_64" or any(map(capabilities.get, vnni)):
        return None
    return "this CPU has no VNNI instructions: INT8 products are slower than float32's"


def check_contraction(codes: int) -> None:
    """Refuse a sum that int32 may not hold.

    Args:
        codes: How many products it is of.

    Raises:
        ValueError: More than `CONTRACTION_MAX`.
    """
    if codes > CONTRACTION_MAX:
        raise ValueError(
            f"contraction over {codes} codes can overflow int32; the limit is {CONTRACTION_MAX}: "
            "split the batch"
        )


def int8_matmul(
    a: Tensor, b: Tensor, scratch: Scratch | None = None, out: Tensor | None = None
) -> Tensor:
    """Exact integer product.

    Args:
        a: int8 `[M, K]`.
        b: int8 `[K, N]`.
        scratch: int32 memory for the result; None: memory of its own.
        out: int32 `[M, N]` to write the result to instead.

    Returns:
        int32 `[M, N]`; `out` where given.

    Raises:
        TypeError: An operand is not int8.
        ValueError: Shapes do not match, or K is so long that an int32 sum could overflow.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise TypeError(f"int8_matmul multiplies int8 by int8, got {a.dtype} and {b.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"int8_matmul needs [M, K] @ [K, N], got {[*a.shape]} @ {[*b.shape]}")
    (rows, inner), columns = a.shape, b.shape[1]
    check_contraction(inner)
    more_rows = max(0, _MIN_ROWS - rows)
    more_inner, more_columns = -inner % _MULTIPLE, -columns % _MULTIPLE
    if more_rows or more_inner:
        a = _padded(a, more_rows, more_inner)
    if more_inner or more_columns:
        b = _padded(b, more_inner, more_columns)
    if a.is_cuda:
        a, b = a.contiguous(), b.t().contiguous().t()
    # [M, K] @ [K, N] -> [M, N], int32
    if out is not None and not (more_rows or more_columns):
        return torch._int_mm(a, b, out=out)
    if scratch is None:
        product = torch._int_mm(a, b)
    else:
        product = torch._int_mm(a, b, out=scratch.take(a.shape[0], b.shape[1]))
    product = product[:rows, :columns]
    return product if out is None else out.copy_(product)


def _padded(matrix: Tensor, more_rows: int, more_columns: int) -> Tensor:
    """Zero codes below and beside a matrix, which keeps its order in memory.

    Padding a transposed view as it stands would transpose it in memory, at a third of the speed.
    """
    if matrix.stride(0) == 1:
        return _with_zeros(matrix.t(), more_columns, more_rows).t()
    return _with_zeros(matrix, more_rows, more_columns)


def _with_zeros(matrix: Tensor, more_rows: int, more_columns: int) -> Tensor:
    if not torch.compiler.is_compiling():
        return pad(matrix, (0, more_columns, 0, more_rows))
    # An operator of its own, which a compiler calls as it stands: what it makes of `pad` asks at
    # every element where the matrix ends, and took as long as all else in a network 500 wide.
    padded: Tensor = torch.ops.ffedge.with_zeros(matrix, more_rows, more_columns)
    return padded


# By hand: a `custom_op` loads the compiler at its first call, and takes 26 microseconds, not 9.
_OPERATORS = Library("ffedge", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "with_zeros(Tensor matrix, SymInt more_rows, SymInt more_columns) -> Tensor"
)
_OPERATORS.impl(  # type: ignore[no-untyped-call]
    "with_zeros", _with_zeros, "CompositeExplicitAutograd"
)


@register_fake(  # type: ignore[untyped-decorator]
    "ffedge::with_zeros", lib=_OPERATORS
)
def _zeros_around(matrix: Tensor, more_rows: int, more_columns: int) -> Tensor:
    rows, columns = matrix.shape
    return matrix.new_empty((rows + more_rows, columns + more_columns))
