"""Rounding noise that depends on nothing but its key.

Stochastic rounding, `floor(x + u)` with `u` uniform in [0, 1), is unbiased: E[q] = x, here to
2^-17 of a code. Drawing `u` from a stateful generator would make the codes depend on tiling, thread
count and on what was drawn before; hashing the element's own place with a key makes them depend on
the key alone, so a resumed learner rounds exactly as one that was never stopped.

An element at row r and column c of a matrix gets, under the key k, the word

    h = mix''(mix(r) ^ mix'(c) ^ k)     mix = lowbias32 (Wellons, "Prospecting for Hash Functions",
                                        2018); mix' tells a column from the row of its number

The outer mix, once an element, is lowbias32 without its first and last shift, which costs half as
much; its arguments are mixed words already. (Cut to one multiply, some pairs of rows had a
correlation of 0.45.) Two keys give the same words in another order where `k ^ k'` happens to be
the difference of two elements; for tensors of n elements that is once in 2^32 / n pairs of
elements, and harms nothing.

A draw is a half `b` of the word, and one word gives two. It is added as an integer, to x in parts
of 2^-16, so that `u = b 2^-16`:

    q = (round(2^16 x) + b) >> 16       E[q] = round(2^16 x) 2^-16, and a code is never moved

which takes fewer instructions than floats do (a sixth of the masters' time, benchmarks/RECORDS.md).
To the nearest, and not cut off: a weight that moves at every step would lose 2^-17 of a code each
time, always towards zero, and 4 to 7 codes in a million steps.

int32 stands in for uint32: products wrap the same way, and right shifts are masked to be logical.
Pure functions of tensors, so that torch.compile fuses the noise into whatever rounds with it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DRAW_BITS = 16
_M1 = 0x7FEB352D
_M2 = 0x846CA68B
_COLUMNS = 0x9E3779B9  # tells a column's hash from the same-numbered row's


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


class Noise(NamedTuple):
    """Noise for a matrix, before the words of its elements are made.

    Args:
        rows: Hash of each row, int32 `[R, 1]`.
        columns: Hash of each column, int32 `[1, N]`.
        key: int32 `[]`, on the host whatever the others' device: kernels take it as a number.
    """

    rows: Tensor
    columns: Tensor
    key: Tensor

    def words(self) -> Tensor:
        """One hashed word per element, int32 `[R, N]`."""
        words = (self.rows ^ self.columns ^ self.key) * _M1
        return (words ^ ((words >> 15) & 0x1FFFF)) * _signed(_M2)


def noise(rows: int, columns: int, key: NoiseKey, device: torch.device | str = "cpu") -> Noise:
    """The noise of an `[R, N]` matrix; same key, same noise, whatever device or thread count."""
    word = torch.tensor(_signed(key.word()), dtype=torch.int32)
    return Noise(_row_hashes(rows, device), _column_hashes(columns, device), word)


def draws(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two uniform draws of 16 bits per word: int32 in [0, 2^16)."""
    return words & 0xFFFF, (words >> DRAW_BITS) & 0xFFFF


def uniform(rows: int, columns: int, key: NoiseKey, device: torch.device | str = "cpu") -> Tensor:
    """Uniform in (0, 1), float32 `[R, N]`: odd multiples of 2^-17."""
    return draws(noise(rows, columns, key, device).words())[0] * 2.0**-16 + 2.0**-17


# Made once, outside the chains: inside, a compiler would hash row and column for every element.
@functools.lru_cache(maxsize=256)
def _row_hashes(rows: int, device: torch.device | str) -> Tensor:
    return _mix(torch.arange(rows, dtype=torch.int32, device=device))[:, None]


@functools.lru_cache(maxsize=256)
def _column_hashes(columns: int, device: torch.device | str) -> Tensor:
    places = torch.arange(columns, dtype=torch.int32, device=device)
    return _mix(places + _signed(_COLUMNS))[None, :]


def _mix(words: Tensor) -> Tensor:
    words = (words ^ ((words >> 16) & 0xFFFF)) * _M1
    words = (words ^ ((words >> 15) & 0x1FFFF)) * _signed(_M2)
    return words ^ ((words >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
