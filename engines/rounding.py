"""Rounding noise that depends on nothing but its key.

Stochastic rounding, up where `u < frac(x)` with `u` uniform in [0, 1), is unbiased: E[q] = x.
Drawing `u` from a stateful generator would make the codes depend on tiling, thread count and on
what was drawn before; hashing the element's own index with a key makes them depend on the key
alone, so a resumed learner rounds exactly as one that was never stopped.

`u = (h >> 8) * 2^-24` uses 24 bits because a whole 32-bit word times 2^-32 can round up to 1.0 in
float32, which is no draw of [0, 1).

Two keys whose words differ in low bits alone would give the same draws in another order; for two
tensors of n elements that happens once in 2^32 / n pairs, and harms nothing.

The mixer is lowbias32 (Wellons, "Prospecting for Hash Functions", 2018). int32 stands in for
uint32: products wrap the same way, and right shifts are masked to be logical.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_M1 = 0x7FEB352D
_M2 = 0x846CA68B


@dataclass(frozen=True)
class NoiseKey:
    """Names one tensor of noise: which run, which step, which tensor of that step."""

    seed: int
    step: int
    tensor: int

    def word(self) -> int:
        """The key as one well mixed 32-bit word."""
        word = self.seed & 0xFFFFFFFF
        for part in (self.seed >> 32, self.step, self.step >> 32, self.tensor):
            word = mix32(word ^ mix32((part + 0x9E3779B9) & 0xFFFFFFFF))
        return word


def mix32(word: int) -> int:
    """lowbias32 of one unsigned 32-bit word."""
    word &= 0xFFFFFFFF
    word = ((word ^ (word >> 16)) * _M1) & 0xFFFFFFFF
    word = ((word ^ (word >> 15)) * _M2) & 0xFFFFFFFF
    return word ^ (word >> 16)


def uniform(shape: torch.Size, key: NoiseKey) -> Tensor:
    """Uniform draws in [0, 1).

    Args:
        shape: Shape of the result; fewer than 2^31 elements.
        key: Same key, same draws, whatever the thread count.

    Returns:
        float32, each a multiple of 2^-24.
    """
    word = torch.arange(shape.numel(), dtype=torch.int32)
    word ^= _signed(key.word())
    word ^= (word >> 16) & 0xFFFF
    word *= _M1
    word ^= (word >> 15) & 0x1FFFF
    word *= _signed(_M2)
    word ^= (word >> 16) & 0xFFFF
    return ((word >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(shape)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
