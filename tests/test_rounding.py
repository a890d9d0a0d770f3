"""Rounding noise: the hash bit for bit, then what stochastic rounding asks of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.int8 import quantize
from engines.rounding import NoiseKey, mix32, uniform
from tests import reference

DRAWS = 10**6


def draws(numel: int = DRAWS, *, seed: int = 7, step: int = 3, tensor: int = 1):
    return uniform(torch.Size((numel,)), NoiseKey(seed, step, tensor)).numpy()


class Word:
    """A key that is already mixed, so that a test can choose an element's hash."""

    def __init__(self, word: int) -> None:
        self._word = word

    def word(self) -> int:
        return self._word


@given(st.integers(0, 2**32 - 1))
def test_mixer_equals_the_uint32_oracle(word):
    assert mix32(word) == reference.lowbias32(word)[0]
    assert reference.lowbias32_preimage(mix32(word)) == word


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**48),
    tensor=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_noise_equals_the_uint32_oracle_bit_for_bit(seed, step, tensor, shape):
    found = uniform(torch.Size(shape), NoiseKey(seed, step, tensor))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), reference.uniform(shape, seed, step, tensor))


def test_noise_of_a_large_tensor_equals_the_oracle_on_both_sides_of_bit_16():
    # An arithmetic right shift would differ wherever the sign bit is set: half of all words.
    np.testing.assert_array_equal(draws(200_000), reference.uniform((200_000,), 7, 3, 1))


def test_noise_lies_in_zero_to_one_on_multiples_of_2_to_the_minus_24():
    u = draws()
    assert u.min() >= 0
    assert u.max() < 1
    steps = u.astype(np.float64) * 2**24
    np.testing.assert_array_equal(steps, np.round(steps))


def test_the_largest_hash_gives_less_than_one():
    word = reference.lowbias32_preimage(2**32 - 1)
    (u,) = uniform(torch.Size((1,)), Word(word)).tolist()
    assert u == 1 - 2**-24
    # Why only 24 bits: the same hash with all 32 would be 1 in float32.
    assert np.float32(2**32 - 1) * np.float32(2**-32) == 1


def test_the_smallest_hash_gives_zero():
    assert uniform(torch.Size((1,)), Word(0)).item() == 0


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-3, 0.5, 7.9, -100.6, 126.25])
def test_stochastic_rounding_is_unbiased(value):
    x = torch.full((DRAWS,), value)
    codes = quantize(x, torch.ones(()), torch.from_numpy(draws())).codes.numpy()
    wanted = float(x[0])
    fraction = wanted - np.floor(wanted)
    # A code is one of two neighbours: a Bernoulli variable. 3 sigma of the mean of 10^6 of them;
    # the key is fixed, so the outcome is too.
    sigma = np.sqrt(fraction * (1 - fraction) / DRAWS)
    assert abs(codes.mean() - wanted) < 3 * sigma
    assert set(np.unique(codes)) == {np.floor(wanted), np.ceil(wanted)}


def test_draws_are_uniform_and_neighbours_uncorrelated():
    u = draws().astype(np.float64)
    # 4 sigma each: variance of u is 1/12, of (u - 1/2)^2 it is 1/180, of a correlation 1/n.
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / DRAWS)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / DRAWS)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(DRAWS)


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"seed": 7 + 2**32}, {"step": 4}, {"step": 3 + 2**32}, {"tensor": 2}]
)
def test_another_seed_step_or_tensor_gives_other_draws(other):
    one, two = draws(100_000), draws(100_000, **other)
    # Two independent draws coincide once in 2^24.
    assert (one == two).sum() <= 2
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(100_000)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_thread_count_does_not_change_the_draws(set_threads):
    set_threads(1)
    alone = draws()
    set_threads(2)
    np.testing.assert_array_equal(draws(), alone)


def test_draws_depend_on_the_element_index_not_on_the_shape():
    key = NoiseKey(1, 2, 3)
    flat, square = uniform(torch.Size((36,)), key), uniform(torch.Size((6, 6)), key)
    assert torch.equal(flat.view(6, 6), square)
