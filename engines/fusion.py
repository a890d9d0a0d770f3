"""How elementwise chains run: fused by `torch.compile`, in CUDA kernels of our own, or eager.

An INT8 step is a few integer products and chains around them: scale, norm, ReLU, goodness,
requantize, the optimizer. Run op by op each link of a chain reads and writes the whole tensor and
the chains cost more than the products; fused they cost a pass or two. Every chain here is a pure
function of tensors, written once and run either way. On a CUDA device where nothing compiles (a
stock Jetson has no Triton) some chains have kernels of our own (engines/cuda_chains.py).

The mode is chosen when an engine opens, never later, and reported with its reason: the modes order
their float sums differently, so the same bits are promised within a mode only. `auto` tries to
compile a small function; a machine without a C++ compiler says so and runs kernels where it has
them, else eager.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor

from engines.cuda_driver import KernelsUnavailableError
from engines.recipe import FUSION_NAMES

P = ParamSpec("P")
R = TypeVar("R")

AUTO, COMPILED, KERNELS, EAGER = FUSION_NAMES
Chain = Callable[..., Any]
OpenKernels = Callable[[], Mapping[Chain, Chain]]


class FusionUnavailableError(RuntimeError):
    """A mode was asked for by name and cannot be had here."""


@dataclasses.dataclass(frozen=True)
class Fusion:
    """A mode and how it came to be chosen.

    Args:
        name: `compiled`, `kernels` or `eager`.
        reason: Why.
        kernels: What runs in place of a chain, by chain; all others run eager.
    """

    name: str
    reason: str
    kernels: Mapping[Chain, Chain] = dataclasses.field(
        default_factory=dict, kw_only=True, hash=False, repr=False
    )

    def fuse(self, chain: Callable[P, R]) -> Callable[P, R]:
        """What runs `chain`, a pure function of tensors and constants, in this mode."""
        if self.name == COMPILED:
            return _Fused(chain)
        return self.kernels.get(chain, chain)


def open_fusion(
    name: str = AUTO,
    device: str = "cpu",
    open_kernels: OpenKernels | None = None,
) -> Fusion:
    """The mode for an engine.

    Args:
        name: One of `FUSION_NAMES`.
        device: Where the chains run.
        open_kernels: Gives chains in kernels for the engine's device; None: it has none, being no
            CUDA device.

    Raises:
        FusionUnavailableError: `compiled` or `kernels` was asked for and cannot be had; the message
            says why.
    """
    if name == EAGER:
        return Fusion(EAGER, "asked for by name")
    if name == KERNELS:
        kernels = _opened(open_kernels)
        if isinstance(kernels, str):
            raise FusionUnavailableError(f"chains cannot run in kernels here: {kernels}")
        return _with_kernels("asked for by name", kernels)
    refusal = _refusal(device)
    if refusal is None:
        why = "asked for by name" if name == COMPILED else "torch.compile works here"
        return Fusion(COMPILED, why)
    if name == COMPILED:
        raise FusionUnavailableError(f"torch.compile does not work here: {refusal}")
    why = f"torch.compile does not work here: {refusal}"
    if open_kernels is None:
        return Fusion(EAGER, why)
    kernels = _opened(open_kernels)
    if isinstance(kernels, str):
        return Fusion(EAGER, f"{why}; nor do our kernels: {kernels}")
    return _with_kernels(why, kernels)


def _opened(
    open_kernels: OpenKernels | None,
) -> Mapping[Chain, Chain] | str:
    """Chains in kernels, or why there are none."""
    if open_kernels is None:
        return "the engine does not run on a CUDA device"
    try:
        return open_kernels()
    except KernelsUnavailableError as error:
        return str(error)


def _with_kernels(why: str, kernels: Mapping[Chain, Chain]) -> Fusion:
    return Fusion(
        KERNELS, f"{why}; {len(kernels)} chains in CUDA kernels, others eager", kernels=kernels
    )


def stored(x: Tensor) -> Tensor:
    """`x` in memory of its own, for a chain that uses it more than once.

    A compiler would rather compute `x` anew wherever it is used: for a factor per channel that is
    for every pixel, and for a transposed operand at a stride that does not vectorise. `as_strided`
    changes nothing, and makes inductor write its operand out.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


class _Fused(Generic[P, R]):
    """One layer's use of a chain, with the code compiled for each kind of arguments it has met.

    Compiled ahead of time and called past torch.compile's own dispatch, which takes longer than a
    small chain does (52 against 12 microseconds measured). What a layer's calls may differ in is
    the batch and the constants; that the rest is as it was, the compiled code asserts itself, by
    size and stride of every tensor.
    """

    def __init__(self, chain: Callable[P, R]) -> None:
        self._chain = chain
        self._variants: dict[Hashable, Callable[..., R]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        key = tuple(map(_outline, args))
        variant = self._variants.get(key)
        if variant is None:
            variant = self._variants[key] = _compiled(self._chain, args)
        return variant(*args)


# All code compiled so far: (chain, kind of arguments) to variants, of which guards tell which fits.
_VARIANTS: dict[Hashable, list[Any]] = {}


def _compiled(chain: Callable[..., Any], args: tuple[Any, ...]) -> Any:  # noqa: ANN401 - torch's own
    """The code for arguments like these, shared by all layers that have the same.

    Sizes stay variables: one variant serves every layer of a network and every batch, unless the
    chain itself branches on a size. (Fixed sizes were no faster, and took MobileNetV2 160 compiler
    runs in place of some 20 then.)
    """
    variants = _VARIANTS.setdefault((chain, _kind(args)), [])
    for variant in variants:
        if variant.guard_check(*args):
            return variant
    # A chain is to be one loop however long it is; by default 30 operations end it with a buffer.
    options: dict[str, Any] = {
        "realize_opcount_threshold": 1000,
        "realize_reads_threshold": 1000,
    }
    # Sizes that happen to be equal, a batch and a height say, are not the same variable; numbers
    # are constants, and no variables at all.
    with (
        shape_config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        torch._dynamo.config.patch(specialize_float=True, specialize_int=True),
    ):
        jit: Any = torch.compile(chain, fullgraph=True, dynamic=True, options=options)
        variant = jit.aot_compile((args, {}))
    variant.disable_guard_check()
    variants.append(variant)
    return variant


def _outline(value: Any) -> Hashable:  # noqa: ANN401 - whatever a chain takes
    """The shapes of tensors, also in tuples; no mapping; any other value itself."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, tuple):
        return tuple(map(_outline, value))
    return None if isinstance(value, Mapping) else cast("Hashable", value)


def _kind(value: Any) -> Hashable:  # noqa: ANN401 - whatever a chain takes
    """What compiled code may depend on: tensors' dtypes and forms, values of everything else."""
    if isinstance(value, torch.Tensor):
        ones = tuple(size == 1 for size in value.shape)
        return value.dtype, ones, value.is_contiguous() or _order(value)
    if isinstance(value, tuple):
        return type(value), tuple(map(_kind, value))
    if isinstance(value, Mapping):
        return tuple((name, _kind(part)) for name, part in value.items())
    return cast("Hashable", value)


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Axes by stride."""
    strides = tensor.stride()
    return tuple(sorted(range(len(strides)), key=lambda axis: (strides[axis], axis)))


@functools.cache
def _refusal(device: str) -> str | None:
    """Why torch.compile does not work here; None where it does."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu()

    try:
        _Fused(probe)(torch.ones(64, device=device))
    except Exception as error:  # noqa: BLE001 - whatever a compiler or its absence may raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
