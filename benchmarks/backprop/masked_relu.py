"""ReLU that keeps a byte per element for the backward pass instead of its float output.

Torch's ReLU keeps its output. In a float network that costs nothing, since the next layer keeps
the same tensor as its input; in an INT8 network the next layer keeps codes, and the float output
would live on for the ReLU alone. INT8 back-propagation would then need *more* memory than float32,
which no one who implements it would accept: a baseline that is easy to beat proves nothing.

`masked_relus()` applies it from outside, to every ReLU that is called in the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows
from torch.overrides import TorchFunctionMode

# Function to the value at which it saturates.
_RELUS: Mapping[Callable[..., Any], float | None] = {torch.relu: None, F.relu: None, F.relu6: 6.0}


class _MaskedRelu(torch.autograd.Function):
    """`y = min(max(x, 0), limit)`; the gradient passes where `0 < x < limit`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no public type
        x: Tensor,
        limit: float | None,
    ) -> Tensor:
        mask = x > 0
        if limit is not None:
            mask &= x < limit
        ctx.save_for_backward(mask)
        return x.clamp(0.0, limit)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        *grad_outputs: Tensor,
    ) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad_outputs[0] * mask, None


class masked_relus(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """In this block `relu` and `relu6` keep masks."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        if func in _RELUS and torch.is_grad_enabled():
            return _MaskedRelu.apply(args[0], _RELUS[func])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
