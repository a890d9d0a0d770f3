"""Kernels for matrices, through the real pycuda on a fake driver: bit for bit what NumPy says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engines import cuda_kernels as kernels
from engines.rounding import NoiseKey, noise
from models.base import LENGTH_EPSILON
from tests import kernel_reference as oracle
from tests import reference
from tests.cuda_rig.kernel_fixtures import cuda_driver, launcher, pycuda_rig
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS

__all__ = ["cuda_driver", "launcher", "pycuda_rig"]  # fixtures, used by name

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)
F = np.float32
KEY = NoiseKey(7, 3, 1)
# Threads are run one after another here, a microsecond each: few examples, and odd sizes in them.
few = settings(max_examples=20)
# Rows of one block, of a last block that is part empty, and of several rounds.
sizes = st.tuples(st.integers(1, 40), st.sampled_from([1, 3, 8, 63, 255, 256, 257, 600]))
seeds = st.integers(0, 2**32 - 1)
any_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(found: torch.Tensor | None, wanted) -> None:
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), np.asarray(wanted).reshape(found.shape))


def tensors(*found):
    return [None if array is None else torch.from_numpy(array) for array in found]


def codes(rng, shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def spread(rng, shape):
    """float32 of many sizes, some of them zero."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 4, shape)
    return np.where(rng.random(shape) < 0.2, 0, x).astype(F)


# --- quantizing -----------------------------------------------------------------------------------


@few
@given(x=arrays(F, st.integers(1, 40), elements=any_floats))
def test_a_scale_and_its_codes(launcher, x):
    scale = kernels.absmax_scale(launcher, torch.from_numpy(x))
    same(scale, reference.absmax_scale(x))
    same(
        kernels.quantize(launcher, torch.from_numpy(x), scale),
        reference.quantize(x, reference.absmax_scale(x)),
    )


@pytest.mark.parametrize("count", [1, 255, 256, 257, 64 * 256, 64 * 256 + 1, 40_000])
def test_no_element_is_missed_however_many_blocks_look(launcher, count):
    for place in {0, count // 2, count - 1}:
        x = torch.zeros(count)
        x[place] = -254.0
        assert kernels.absmax_scale(launcher, x).item() == 2.0


@few
@given(size=sizes, seed=seeds)
def test_a_scale_for_each_row(launcher, size, seed):
    x = spread(np.random.default_rng(seed), size)
    scales = kernels.row_scales(launcher, torch.from_numpy(x))
    same(scales, reference.absmax_scale(x, axis=1))
    wanted = reference.quantize(x, reference.absmax_scale(x, axis=1))
    same(kernels.quantize(launcher, torch.from_numpy(x), scales), wanted)


def test_codes_end_at_127_and_halves_go_to_the_even(launcher):
    x = torch.tensor([-1e30, -127.5, -0.5, 0.5, 1.5, 2.5, 126.5, 1e30])
    found = kernels.quantize(launcher, x, torch.ones(()))
    assert found.tolist() == [-127, -127, 0, 0, 2, 2, 126, 127]


def test_what_is_not_a_number_is_the_largest(launcher):
    for place in (0, 300):
        x = torch.ones(2, 301)
        x[1, place] = torch.nan
        assert kernels.absmax_scale(launcher, x).isnan()
        assert kernels.row_scales(launcher, x).isnan().flatten().tolist() == [False, True]


def test_a_million_codes(launcher):
    """A rounding too many, or one too few, moves a code to the nearest once in 10^5."""
    x = np.random.default_rng(1).standard_normal(10**6).astype(F)
    scale = kernels.absmax_scale(launcher, torch.from_numpy(x))
    wanted = reference.quantize(x, reference.absmax_scale(x))
    same(kernels.quantize(launcher, torch.from_numpy(x), scale), wanted)


# --- a dense unit ---------------------------------------------------------------------------------


@few
@given(size=sizes, seed=seeds)
@example(size=(2, 10**6), seed=2)  # its products in another order give two other codes
def test_dense_forward(launcher, size, seed):
    rng = np.random.default_rng(seed)
    sums = rng.integers(-(2**24) * 3, 2**24 * 3, size, dtype=np.int32)
    scale = np.array(rng.random() * 1e-3, F)
    weight_scale = (rng.random((size[1], 1)) * 1e-3).astype(F)
    bias = rng.standard_normal(size[1]).astype(F)
    given_ = tensors(sums, scale, weight_scale, bias)
    found = kernels.dense_forward(launcher, *given_, LENGTH_EPSILON)
    wanted = oracle.dense_forward(sums, scale, weight_scale[:, 0], bias, LENGTH_EPSILON)
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


@few
@given(size=sizes, seed=seeds, update=st.booleans(), propagate=st.booleans())
def test_dense_errors(launcher, size, seed, update, propagate):
    rng = np.random.default_rng(seed)
    error, kept = spread(rng, size), codes(rng, size)
    weight_scale = rng.random((size[1], 1)).astype(F)
    found = kernels.dense_errors(
        launcher, *tensors(error, kept, weight_scale), noise(*size, KEY),
        update=update, propagate=propagate,
    )  # fmt: skip
    by_column, column_scale, bias, by_row, row_scale = oracle.dense_errors(
        error, kept, weight_scale[:, 0], KEY.word(), kernels._ROWS_EACH
    )
    assert (found.by_column is None, found.bias is None) == (not update, not update)
    assert (found.by_row is None) == (not propagate)
    if found.by_column is not None:
        same(found.by_column.codes, by_column)
        same(found.by_column.scale, column_scale)
        same(found.bias, bias)
    if found.by_row is not None:
        same(found.by_row.codes, by_row)
        same(found.by_row.scale, row_scale)


# --- masters --------------------------------------------------------------------------------------


@few
@given(size=sizes, seed=seeds)
def test_the_rows_of_a_gradient(launcher, size, seed):
    values = np.random.default_rng(seed).integers(-(2**31) + 1, 2**31, size, dtype=np.int32)
    reach, mean_square = kernels.gradient_rows(launcher, torch.from_numpy(values))
    wide = values.astype(F)
    same(reach, np.abs(wide).max(axis=1))
    same(mean_square, oracle.block_sums(wide * wide) / F(size[1]))


@few
@given(size=sizes, seed=seeds)
def test_the_columns_of_a_gradient(launcher, size, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-(10**6), 10**6, size, dtype=np.int32)
    scale = rng.random((size[0], 1)).astype(F)
    found = kernels.gradient_columns(launcher, *tensors(values, scale))
    g = values.astype(F) * scale
    sums = oracle.parted_sums(g * g, kernels._ROWS_EACH)
    same(found, sums / F(size[0]))


@few
@given(size=sizes, seed=seeds, remainder=st.booleans(), columns=st.booleans())
def test_weights_move(launcher, size, seed, remainder, columns):
    rng = np.random.default_rng(seed)
    values = rng.integers(-(10**6), 10**6, size, dtype=np.int32)
    held = codes(rng, size)
    rest = rng.integers(-128, 128, size).astype(np.int8) if remainder else None
    momentum = codes(rng, size)
    factors = [(rng.random((size[0], 1)) * most).astype(F) for most in (1, 1e-4, 1.1, 2)]
    column_factor = (rng.random((1, size[1])) * 10).astype(F) if columns else None
    found = kernels.move_rows(
        launcher, *tensors(values, held, rest, momentum), tuple(tensors(*factors)),
        *tensors(column_factor), noise(*size, KEY),
    )  # fmt: skip
    wanted = oracle.move_rows(values, held, rest, momentum, factors, column_factor, KEY.word())
    assert (found.remainder is None) == (wanted[1] is None)
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            same(one, other)


# --- a product of few rows ------------------------------------------------------------------------


@few
@given(
    rows=st.integers(1, 16),
    inner=st.sampled_from([1, 3, 4, 27, 64, 127, 128, 129, 256]),
    outputs=st.integers(1, 11),
    seed=seeds,
)
def test_a_small_product(launcher, rows, inner, outputs, seed):
    rng = np.random.default_rng(seed)
    a, w = codes(rng, (rows, inner)), codes(rng, (outputs, inner))
    same(kernels.small_product(launcher, *tensors(a, w)), reference.int_matmul(a, w.T))


def test_a_small_product_of_the_largest_codes(launcher):
    a = torch.full((1, 133_144), 127, dtype=torch.int8)
    assert kernels.small_product(launcher, a, -a).item() == -127 * 127 * 133_144
    long = torch.zeros(1, 133_145, dtype=torch.int8)
    with pytest.raises(ValueError, match="can overflow int32"):
        kernels.small_product(launcher, long, long)


def test_more_rows_are_refused(launcher):
    a = torch.zeros(17, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="a product of 17 rows; wanted 16 at most"):
        kernels.small_product(launcher, a, a)


def test_words_that_do_not_lie_on_words_are_read_byte_by_byte(launcher):
    memory = torch.arange(-60, 69, dtype=torch.int8)
    a = memory[1:9].view(1, 8)
    wanted = reference.int_matmul(a.numpy(), a.numpy().T)
    same(kernels.small_product(launcher, a, a), wanted)
