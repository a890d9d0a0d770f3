"""INT8: products exact whatever the shape, and a quantizer that keeps its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from engines.int8 import CONTRACTION_MAX, absmax_scale, int8_matmul, quantize, slow_products
from tests import reference

FLOAT32 = np.finfo(np.float32)
SMALLEST_DRAW, LARGEST_DRAW = 0, 2**16 - 1
# Of a step: a reciprocal and a product carry 2^-24 each, of at most 127 steps.
SLACK = 2**-16

tensors = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def draw_of(value: int, x: torch.Tensor) -> torch.Tensor:
    """The same draw for every element of `x`."""
    return torch.full(x.shape, value, dtype=torch.int32)


# --- products ---------------------------------------------------------------------------------


def codes(fill: str, shape: tuple[int, int], seed: int):
    if fill == "random":
        return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    return np.full(shape, int(fill), dtype=np.int8)


fills = st.sampled_from(["random", "random", "127", "-127"])


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40)),
    fill=st.tuples(fills, fills),
    transposed=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_product_equals_the_int64_oracle_exactly(sizes, fill, transposed, seed):
    rows, inner, columns = sizes
    a, b = codes(fill[0], (rows, inner), seed), codes(fill[1], (inner, columns), seed + 1)
    views = [
        torch.from_numpy(m.T.copy()).t() if turned else torch.from_numpy(m.copy())
        for m, turned in zip((a, b), transposed, strict=True)
    ]
    product = int8_matmul(*views)
    assert product.dtype == torch.int32
    np.testing.assert_array_equal(product.numpy(), reference.int_matmul(a, b))
    np.testing.assert_array_equal(views[0].numpy(), a)
    np.testing.assert_array_equal(views[1].numpy(), b)


@pytest.mark.parametrize("rows", [1, 16, 17, 18])
@pytest.mark.parametrize("inner", [1, 8, 27, 64])
@pytest.mark.parametrize("columns", [1, 8, 10])
def test_every_kernel_call_obeys_the_cuda_rules(monkeypatch, rows, inner, columns):
    kernel, calls = torch._int_mm, []

    def spy(a, b):
        calls.append((a, b))
        return kernel(a, b)

    monkeypatch.setattr(torch, "_int_mm", spy)
    a, b = codes("random", (rows, inner), 1), codes("random", (inner, columns), 2)
    product = int8_matmul(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_array_equal(product.numpy(), reference.int_matmul(a, b))
    ((padded_a, padded_b),) = calls
    (M, K), N = padded_a.shape, padded_b.shape[1]
    assert M > 16
    assert K % 8 == 0
    assert N % 8 == 0
    # Padding is zeros around the operands, and no more of it than the rules ask for.
    needed = (max(rows, 17), -(-inner // 8) * 8, -(-columns // 8) * 8)
    assert needed == (M, K, N)
    assert padded_a.abs().to(torch.int64).sum() == np.abs(a.astype(np.int64)).sum()
    assert padded_b.abs().to(torch.int64).sum() == np.abs(b.astype(np.int64)).sum()


@pytest.mark.parametrize("columns", [8, 10])
@pytest.mark.parametrize("rows", [16, 24])
def test_the_result_is_written_where_it_is_wanted(rows, columns):
    a, b = codes("random", (rows, 27), 1), codes("random", (27, columns), 2)
    around = torch.full((rows + 2, columns), 7, dtype=torch.int32)
    product = int8_matmul(torch.from_numpy(a), torch.from_numpy(b), out=around[1:-1])
    assert product.data_ptr() == around[1].data_ptr()
    np.testing.assert_array_equal(around[1:-1].numpy(), reference.int_matmul(a, b))
    assert (around[[0, -1]] == 7).all()


def test_padding_keeps_the_order_in_memory(monkeypatch):
    kernel, strides = torch._int_mm, []

    def spy(a, b):
        strides.append((a.stride(), b.stride()))
        return kernel(a, b)

    monkeypatch.setattr(torch, "_int_mm", spy)
    a, b = (
        torch.from_numpy(codes("random", (16, 27), 1)),
        torch.from_numpy(codes("127", (27, 9), 2)),
    )
    int8_matmul(a, b)
    int8_matmul(a.t().contiguous().t(), b.t().contiguous().t())
    assert strides == [((32, 1), (16, 1)), ((1, 17), (1, 32))]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_contraction_of_the_largest_codes_does_not_overflow(sign):
    assert CONTRACTION_MAX == 133_144  # the largest K with 127^2 K <= 2^31 - 1
    a = torch.full((1, CONTRACTION_MAX), 127, dtype=torch.int8)
    b = torch.full((CONTRACTION_MAX, 1), 127 * sign, dtype=torch.int8)
    assert int8_matmul(a, b).item() == sign * 127 * 127 * 133_144


def test_a_longer_contraction_is_refused():
    a, b = torch.zeros(1, 133_145, dtype=torch.int8), torch.zeros(133_145, 1, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"contraction over 133145 codes .* limit is 133144"):
        int8_matmul(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int32])
def test_operands_other_than_int8_are_refused(dtype):
    good, bad = torch.zeros(4, 4, dtype=torch.int8), torch.zeros(4, 4, dtype=dtype)
    for operands in ((good, bad), (bad, good)):
        with pytest.raises(TypeError, match=f"int8 by int8, got .*{dtype}"):
            int8_matmul(*operands)


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((3,), (3, 2)), ((2, 3), (3,))])
def test_shapes_that_do_not_match_are_refused(shapes):
    a, b = (torch.zeros(shape, dtype=torch.int8) for shape in shapes)
    with pytest.raises(ValueError, match=r"needs \[M, K\] @ \[K, N\], got \["):
        int8_matmul(a, b)


# --- quantizer --------------------------------------------------------------------------------


def nearest(x, dim: int | None = None):
    tensor = torch.from_numpy(x)
    q = quantize(tensor, absmax_scale(tensor, dim))
    return q.codes.numpy(), q.scale.numpy()


@given(x=tensors, dim=st.sampled_from([None, 0, 1]))
def test_codes_and_scales_equal_the_oracle(x, dim):
    found, scale = nearest(x, dim)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(scale, reference.absmax_scale(x, dim))
    np.testing.assert_array_equal(found, reference.quantize(x, scale))


@given(x=tensors, dim=st.sampled_from([None, 0, 1]))
def test_nearest_is_off_by_half_a_step_at_most(x, dim):
    found, scale = nearest(x, dim)
    error = np.abs(x.astype(np.float64) - found * scale.astype(np.float64))
    assert (error <= scale.astype(np.float64) * (0.5 + SLACK)).all()


@given(x=tensors, key=st.integers(0, 2**32 - 1))
def test_stochastic_is_off_by_less_than_a_step(x, key):
    noise, _ = reference.draws(x.shape, key, 0, 0)
    tensor = torch.from_numpy(x)
    q = quantize(tensor, absmax_scale(tensor), torch.from_numpy(noise))
    scale = q.scale.double().item()
    error = np.abs(x.astype(np.float64) - q.codes.numpy() * scale)
    assert (error < scale * (1 + SLACK)).all()
    np.testing.assert_array_equal(q.codes.numpy(), reference.quantize(x, q.scale.numpy(), noise))


@pytest.mark.parametrize("noise", [SMALLEST_DRAW, 2**15, LARGEST_DRAW])
def test_stochastic_leaves_what_is_already_a_code(noise):
    x = torch.arange(-127.0, 128.0)
    assert torch.equal(quantize(x, torch.ones(()), draw_of(noise, x)).codes.float(), x)


def test_stochastic_goes_up_with_the_probability_of_the_fraction():
    x = torch.tensor([2.25, 2.25, 2.25, -2.25, -2.25, -2.25])
    # Up where the draw is at least what is missing to the next code.
    quarter = 2**14
    noise = [LARGEST_DRAW, 3 * quarter, 3 * quarter - 1, LARGEST_DRAW, quarter, quarter - 1]
    assert quantize(x, torch.ones(()), torch.tensor(noise, dtype=torch.int32)).codes.tolist() == [
        3,
        3,
        2,
        -2,
        -2,
        -3,
    ]


@given(x=tensors, dim=st.sampled_from([None, 0, 1]))
def test_sign_symmetric_and_zero_to_zero(x, dim):
    found, scale = nearest(x, dim)
    mirrored, mirrored_scale = nearest(-x, dim)
    np.testing.assert_array_equal(mirrored, -found)
    np.testing.assert_array_equal(mirrored_scale, scale)
    assert (found[x == 0] == 0).all()


@given(x=tensors)
def test_monotone(x):
    found, _ = nearest(np.sort(x.reshape(1, -1)))
    assert (np.diff(found.astype(np.int64)) >= 0).all()


@given(x=tensors, scale=st.floats(2.0**-100, 2.0**100, width=32), noisy=st.booleans())
def test_minus_128_is_never_used(x, scale, noisy):
    values = torch.from_numpy(x)
    noise = draw_of(SMALLEST_DRAW, values) if noisy else None  # rounds down: the way to -128
    q = quantize(values, torch.tensor(scale, dtype=torch.float32), noise)
    assert q.codes.min() >= -127


def test_values_beyond_the_scale_are_clipped_on_both_sides():
    x = torch.tensor([-1e30, -128.0, -127.4, 127.4, 128.0, 1e30])
    wanted = [-127, -127, -127, 127, 127, 127]
    assert quantize(x, torch.ones(())).codes.tolist() == wanted
    for draw in (SMALLEST_DRAW, LARGEST_DRAW):
        assert quantize(x, torch.ones(()), draw_of(draw, x)).codes.tolist() == wanted


def test_half_rounds_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, 125.5, 126.5, -0.5, -1.5, -2.5, -126.5])
    assert quantize(x, torch.ones(())).codes.tolist() == [0, 2, 2, 126, 126, 0, -2, -2, -126]


@pytest.mark.parametrize("draw", [None, LARGEST_DRAW, SMALLEST_DRAW])
def test_all_zeros_give_scale_one_and_codes_zero(draw):
    zeros = torch.zeros(2, 3)
    q = quantize(zeros, absmax_scale(zeros), None if draw is None else draw_of(draw, zeros))
    assert q.scale.item() == 1
    assert not q.codes.any()


@pytest.mark.parametrize("dim", [0, 1])
def test_only_the_row_or_column_of_zeros_gets_scale_one(dim):
    x = torch.tensor([[0.0, 0.0], [0.0, 254.0]])
    assert absmax_scale(x, dim).flatten().tolist() == [1, 2]


@pytest.mark.parametrize("value", [1.0, -3e-5, 1e30, -1e30, 3e38])
def test_a_single_element_becomes_the_largest_code(value):
    x = torch.tensor([value])
    q = quantize(x, absmax_scale(x))
    assert q.codes.item() == np.sign(value) * 127
    # Two float32 roundings, of s and of 127 s.
    assert q.dequantize().item() == pytest.approx(x.item(), rel=2**-23)


def test_denormals_are_taken_as_zero():
    # absmax / 127 of these is no normal number: dividing by it would lose all precision.
    x = torch.tensor([float(FLOAT32.smallest_subnormal), -float(FLOAT32.tiny), 0.0])
    q = quantize(x, absmax_scale(x))
    assert q.scale.item() == 1
    assert q.codes.tolist() == [0, 0, 0]


# --- what a CPU can do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx512_vnni": True}, False),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, False),
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "arm64"}, False),  # not known
    ],
)
def test_a_cpu_without_instructions_for_products_is_said_to_be_slow(
    monkeypatch, capabilities, slow
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bool(slow_products()) == slow


def test_a_torch_that_does_not_know_says_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert slow_products() is None
