"""Rounding noise: the hash bit for bit, then what stochastic rounding asks of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.int8 import quantize
from engines.rounding import NoiseKey, draws, mix32, noise, uniform
from tests import reference

KEY = NoiseKey(seed=7, step=3, tensor=1)
SIDE = 1000  # a matrix of 10^6 draws
ALL_DRAWS = torch.arange(2**16, dtype=torch.int32)


def both(shape: tuple[int, int] = (SIDE, SIDE), key: NoiseKey = KEY):
    low, high = draws(noise(*shape, key).words())
    return low.numpy(), high.numpy()


class Word:
    """A key that is already mixed, so that a test can choose the first element's hash."""

    def __init__(self, wanted: int) -> None:
        self._word = reference.word_for_first(wanted)

    def word(self) -> int:
        return self._word


# --- the hash -----------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_mixer_equals_the_uint32_oracle(word):
    assert mix32(word) == reference.lowbias32(word)[0]
    assert reference.words((1, 1), reference.word_for_first(word)).item() == word


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**48),
    tensor=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_noise_equals_the_uint32_oracle_bit_for_bit(seed, step, tensor, shape):
    key = NoiseKey(seed, step, tensor)
    found, wanted = both(shape, key), reference.draws(shape, seed, step, tensor)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == np.int32
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(uniform(*shape, key).numpy(), (wanted[0] + 0.5) * 2.0**-16)


def test_noise_of_a_large_tensor_equals_the_oracle():
    # An arithmetic right shift would differ wherever the sign bit is set: half of all words.
    for found, wanted in zip(both((700, 300)), reference.draws((700, 300), 7, 3, 1), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("word", "low", "high"),
    [
        (0, 0, 0),
        (2**32 - 1, 2**16 - 1, 2**16 - 1),
        (0x0000FFFF, 2**16 - 1, 0),
        (0x80000000, 0, 2**15),
    ],
)
def test_each_half_of_a_word_is_a_draw(word, low, high):
    found = draws(noise(1, 1, Word(word)).words())
    assert [u.item() for u in found] == [low, high]


# --- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0, 1])
def test_draws_are_uniform_and_every_one_occurs(half):
    draw = both()[half].ravel()
    counts = np.bincount(draw, minlength=2**16)
    u = (draw + 0.5) * 2.0**-16
    assert len(counts) == 2**16
    # 4 sigma each: variance of u is 1/12, of (u - 1/2)^2 it is 1/180; chi-squared of 2^16 cells
    # has the mean 2^16 - 1 and twice that as variance. The key is fixed, so the outcome is too.
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / len(u))
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / len(u))
    expected = len(u) / 2**16
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 2**16) < 4 * np.sqrt(2 * 2**16)


@pytest.mark.parametrize("key", [KEY, NoiseKey(0, 0, 0), NoiseKey(1, 40_000, 77)])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_two_rows_or_columns_are_correlated(key, half, axis):
    shape = (256, 4096) if axis == 0 else (4096, 256)
    u = both(shape, key)[half].astype(np.float64)
    correlation = np.corrcoef(u if axis == 0 else u.T)
    np.fill_diagonal(correlation, 0)
    # Of 4096 independent pairs a correlation has the deviation 1/64. 6 of them: by chance once in
    # 16,000 such tests, each with 32,640 pairs.
    assert np.abs(correlation).max() < 6 / 64


def test_neighbours_and_the_two_halves_are_uncorrelated():
    low, high = (u.astype(np.float64) for u in both())
    neighbours = [(low[:, :-1], low[:, 1:]), (low[:-1], low[1:])]
    halves = [(low, high), (low[:, 1:], high[:, :-1])]
    for one, other in neighbours + halves:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / SIDE


@pytest.mark.parametrize(
    "other",
    [NoiseKey(8, 3, 1), NoiseKey(7 + 2**32, 3, 1), NoiseKey(7, 4, 1), NoiseKey(7, 3 + 2**32, 1),
     NoiseKey(7, 3, 2), NoiseKey(3, 7, 1), NoiseKey(7, 1, 3)],
)  # fmt: skip
def test_another_seed_step_or_tensor_gives_other_draws(other):
    ours, theirs = both((300, 300)), both((300, 300), other)
    for one, two in itertools.product(ours, theirs):
        # Two independent draws coincide once in 2^16: 1.4 times here; and 4 sigma of correlation.
        assert (one == two).sum() < 10
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 4 / 300


def test_a_draw_depends_on_its_row_and_column_and_not_on_the_shape():
    small, large = both((5, 7)), both((60, 50))
    for one, other in zip(small, large, strict=True):
        np.testing.assert_array_equal(one, other[:5, :7])


def test_thread_count_does_not_change_the_draws(set_threads):
    set_threads(1)
    alone = both()
    set_threads(2)
    for one, other in zip(alone, both(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- stochastic rounding ------------------------------------------------------------------------


def test_no_draw_moves_what_is_already_a_code():
    for code in range(-127, 128):
        x = torch.full(ALL_DRAWS.shape, float(code))
        assert (quantize(x, torch.ones(()), ALL_DRAWS).codes == code).all()


@given(st.floats(-127, 127, width=32))
def test_over_all_draws_the_mean_code_is_the_value(value):
    x = torch.full(ALL_DRAWS.shape, value)
    mean = quantize(x, torch.ones(()), ALL_DRAWS).codes.double().mean().item()
    # To the nearest 2^-16, and nothing else is lost.
    assert mean == np.rint(value * 2.0**16) * 2.0**-16


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-3, 0.5, 7.9, -100.6, 126.25])
@pytest.mark.parametrize("half", [0, 1])
def test_the_mean_of_a_million_roundings_is_the_value(value, half):
    u = torch.from_numpy(both()[half])
    x = torch.full(u.shape, value)
    codes = quantize(x, torch.ones(()), u).codes.numpy()
    wanted = float(x[0, 0])
    fraction = wanted - np.floor(wanted)
    # A code is one of two neighbours: a Bernoulli variable. 3 sigma of the mean of 10^6 of them;
    # the key is fixed, so the outcome is too.
    sigma = np.sqrt(fraction * (1 - fraction)) / SIDE
    assert abs(codes.mean() - wanted) < 3 * sigma
    assert set(np.unique(codes)) == {np.floor(wanted), np.ceil(wanted)}
