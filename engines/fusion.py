"""Whether elementwise chains run fused: `torch.compile` where it works, eager otherwise.

An INT8 step is a few integer products with chains between them: scale, norm, ReLU, goodness,
requantize, the optimizer. Run op by op each link of a chain reads and writes the whole tensor and
the chains cost more than the products; fused they cost a pass or two. Every chain here is a pure
function of tensors, written once and run either way.

The mode is chosen when an engine opens, never later, and reported with its reason: the two modes
order their float sums differently, so the same bits are promised within a mode only. `auto` tries
to compile a small function; a machine without a C++ compiler says so and runs eager.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from engines.recipe import FUSION_NAMES

P = ParamSpec("P")
R = TypeVar("R")

AUTO, COMPILED, EAGER = FUSION_NAMES

# Every layer shape of a network is a specialisation of the same few functions; torch's default of 8
# would silently run the ninth shape eagerly.
_MOST_SPECIALISATIONS = 512


class FusionUnavailableError(RuntimeError):
    """Compiled chains were asked for by name and cannot be had here."""


@dataclasses.dataclass(frozen=True)
class Fusion:
    """A mode and how it came to be chosen.

    Args:
        name: `compiled` or `eager`.
        reason: Why.
    """

    name: str
    reason: str

    def fuse(self, chain: Callable[P, R]) -> Callable[P, R]:
        """`chain`, fused in compiled mode: a pure function of tensors and constants."""
        return _compiled(chain) if self.name == COMPILED else chain


def open_fusion(name: str = AUTO) -> Fusion:
    """The mode for an engine.

    Args:
        name: One of `FUSION_NAMES`.

    Raises:
        FusionUnavailableError: `compiled` was asked for and does not work; the message says why.
        ValueError: The name is unknown.
    """
    if name not in FUSION_NAMES:
        raise ValueError(f"fusion {name!r} is unknown; known: {', '.join(FUSION_NAMES)}")
    if name == EAGER:
        return Fusion(EAGER, "asked for by name")
    refusal = _refusal()
    if refusal is None:
        why = "asked for by name" if name == COMPILED else "torch.compile works here"
        return Fusion(COMPILED, why)
    if name == COMPILED:
        raise FusionUnavailableError(f"torch.compile does not work here: {refusal}")
    return Fusion(EAGER, f"torch.compile does not work here: {refusal}")


@functools.cache
def _compiled(chain: Callable[P, R]) -> Callable[P, R]:
    torch._dynamo.config.recompile_limit = _MOST_SPECIALISATIONS
    torch._dynamo.config.accumulated_recompile_limit = _MOST_SPECIALISATIONS
    # A chain is to be one loop however long it is; by default 30 operations end it with a buffer.
    options = {"realize_opcount_threshold": 1000}
    return torch.compile(chain, fullgraph=True, dynamic=False, options=options)


@functools.cache
def _refusal() -> str | None:
    """Why torch.compile does not work here; None where it does."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu()

    try:
        torch.compile(probe, fullgraph=True)(torch.ones(64))
    except Exception as error:  # noqa: BLE001 - whatever a compiler or its absence may raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
