"""The multiply-accumulates that really reach torch's dispatcher, counted from operands' shapes.

The other way to know a step's products is to walk the network's description
(`benchmarks/accounting.py`); this one believes nobody. It sees every matrix product and
convolution, as the kernel is called: with the zero codes that pad odd shapes. It does not see the
inside of compiled chains, nor sums of elementwise products such as the depthwise convolutions of
`engines/depthwise.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Whatever sums over products by its name; one that is not known below is an error, not a zero.
_PRODUCT = re.compile(r"mm|mv$|dot|matmul|linear|einsum|conv|inner|attention|cdist|(?<!_)addr")


def _matrices(a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]  # [..., M, K] @ [..., K, N]


def _window(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])  # [O, C / groups, k, k]


_MACS: Mapping[str, Callable[[tuple[Any, ...], Any], int]] = {
    "_int_mm": lambda args, result: _matrices(*args[:2]),
    "mm": lambda args, result: _matrices(*args[:2]),
    "bmm": lambda args, result: _matrices(*args[:2]),
    "addmm": lambda args, result: _matrices(*args[1:3]),
    "convolution": lambda args, result: result.numel() * _window(args[1]),
    # grad_output, input, weight, ..., which of (input, weight, bias) are wanted
    "convolution_backward": lambda args, result: (
        args[0].numel() * _window(args[2]) * (args[-1][0] + args[-1][1])
    ),
}


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the MACs of every product in its block, by operand: `int8` and `float32`.

    Raises:
        TypeError: A product is of a kind that is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = {"int8": 0, "float32": 0}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no public type
        types: Any,  # noqa: ANN401 - as above
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        """Count, and let the operation run."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _MACS:
            kind = "int8" if args[0].dtype == torch.int8 else "float32"
            self.macs[kind] += _MACS[name](args, result)
        elif _PRODUCT.search(name):
            raise TypeError(f"the operation {name} multiplies, and its products are not counted")
        return result
