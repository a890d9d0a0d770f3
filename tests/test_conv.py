"""Convolutions in integers: exact, whatever the shape, the stride and the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import int8
from engines.conv import conv_forward, conv_grad_input, conv_grad_weight
from engines.im2col import ConvScratch, tiles, window_count, windows_of
from models.layers import ConvLayer
from models.spec import CONTRACTION_MAX
from tests import conv_reference as reference
from tests.test_int8_is_real import ProductRecorder, check_integer_products

seeds = st.integers(0, 2**32 - 1)
tile_sizes = st.sampled_from([1, 200, 3000, None])
batches = st.integers(1, 4)

# The memory of every example, so that nothing may depend on what it held before.
USED = ConvScratch()


def conv(inputs: int, outputs: int, kernel: int, stride: int, in_size: tuple[int, int]):
    return ConvLayer(inputs, outputs, kernel, stride, False, "none", in_size)


STEM = conv(3, 24, 3, 1, (8, 8))


def operands(g: ConvLayer, batch: int, seed: int):
    """Codes of input, weight and error."""
    rng = np.random.default_rng(seed)
    a = reference.random_codes(rng, batch, *g.in_size, g.in_channels)
    w = reference.random_codes(rng, g.out_channels, g.kernel**2 * g.in_channels)
    e = reference.random_codes(rng, batch, *g.out_size, g.out_channels)
    return a, w, e


def tensors(*arrays):
    return [torch.from_numpy(array.copy()) for array in arrays]


def rows_of(e):
    return e.reshape(-1, e.shape[3])


# --- exactness --------------------------------------------------------------------------------


@given(g=reference.conv_layers(), batch=batches, tile_bytes=tile_sizes, seed=seeds)
def test_forward_equals_the_int64_oracle_exactly(g, batch, tile_bytes, seed):
    a, w, _ = operands(g, batch, seed)
    given_a, given_w = tensors(a, w)
    found = conv_forward(given_a, given_w, g, scratch=USED, tile_bytes=tile_bytes)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), rows_of(reference.forward(a, w, g)))
    np.testing.assert_array_equal(given_a.numpy(), a)
    np.testing.assert_array_equal(given_w.numpy(), w)


@given(g=reference.conv_layers(), batch=batches, tile_bytes=tile_sizes, seed=seeds)
def test_weight_gradient_equals_the_int64_oracle_exactly(g, batch, tile_bytes, seed):
    a, _, e = operands(g, batch, seed)
    given_e, given_a = tensors(rows_of(e), a)
    found = conv_grad_weight(given_e, given_a, g, scratch=USED, tile_bytes=tile_bytes)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.grad_weight(e, a, g))
    np.testing.assert_array_equal(given_a.numpy(), a)
    np.testing.assert_array_equal(given_e.numpy(), rows_of(e))


@given(g=reference.conv_layers(), batch=batches, tile_bytes=tile_sizes, seed=seeds)
def test_input_gradient_equals_the_int64_oracle_exactly(g, batch, tile_bytes, seed):
    _, w, e = operands(g, batch, seed)
    given_e, given_w = tensors(e, w)
    found = conv_grad_input(given_e, given_w, g, scratch=USED, tile_bytes=tile_bytes)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), reference.grad_input(e, w, g))
    np.testing.assert_array_equal(given_w.numpy(), w)
    np.testing.assert_array_equal(given_e.numpy(), e)


@given(g=reference.conv_layers(), batch=batches, seed=seeds)
def test_both_gradients_are_adjoint_to_the_forward_product(g, batch, seed):
    a, w, e = tensors(*operands(g, batch, seed))
    e_rows = e.flatten(0, 2)
    product = (conv_forward(a, w, g).long() * e_rows.long()).sum()
    assert product == (a.long() * conv_grad_input(e, w, g).long()).sum()
    assert product == (w.long() * conv_grad_weight(e_rows, a, g).long()).sum()


# --- integers are multiplied, and no more of them than needed ---------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [3, 16])
def test_all_three_products_multiply_only_integers(kernel, stride, channels):
    g = conv(channels, 10, kernel, stride, (6, 7))
    a, w, e = tensors(*operands(g, 2, seed=3))
    with ProductRecorder() as recorder:
        conv_forward(a, w, g, tile_bytes=2000)
        conv_grad_weight(e.flatten(0, 2), a, g, tile_bytes=2000)
        conv_grad_input(e, w, g, tile_bytes=2000)
    assert len(recorder.products) >= 3
    check_integer_products(recorder)


def multiplications(recorder: ProductRecorder) -> int:
    return sum(a.shape[0] * b.numel() for _, (a, b), _ in recorder.products)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_inserted_zero_is_multiplied(kernel, stride):
    g = conv(8, 16, kernel, stride, (20 * stride, 20 * stride))
    a, w, e = tensors(*operands(g, 1, seed=4))
    with ProductRecorder() as forward:
        conv_forward(a, w, g)
    with ProductRecorder() as backward:
        conv_grad_input(e, w, g)
    # The phases share the taps out among them: every window's tap is met once, as on the way there.
    assert multiplications(forward) == 20 * 20 * kernel**2 * 8 * 16
    assert multiplications(backward) == multiplications(forward)


def test_stem_columns_are_padded_in_im2col_and_nowhere_else(monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("int8_matmul had to copy an operand to pad it")

    monkeypatch.setattr(int8, "pad", forbidden)
    a, w, e = operands(STEM, 2, seed=5)
    given_a, given_w, given_e = tensors(a, w, rows_of(e))
    with ProductRecorder() as recorder:
        found = conv_forward(given_a, given_w, STEM)
        gradient = conv_grad_weight(given_e, given_a, STEM)
    np.testing.assert_array_equal(found.numpy(), rows_of(reference.forward(a, w, STEM)))
    np.testing.assert_array_equal(gradient.numpy(), reference.grad_weight(e, a, STEM))
    forward, backward = (codes for _, codes, _ in recorder.products)
    assert forward[0].shape == (128, 32)
    assert backward[1].shape == (128, 32)


@pytest.fixture
def kernel_calls(monkeypatch):
    """Both operands and the result of every call of the kernel, not copied."""
    kernel, calls = torch._int_mm, []

    def spy(a, b, **kwargs):
        product = kernel(a, b, **kwargs)
        calls.append((a, b, product))
        return product

    monkeypatch.setattr(torch, "_int_mm", spy)
    return calls


def test_a_1x1_convolution_multiplies_the_stored_codes_where_they_lie(kernel_calls):
    g = conv(16, 24, 1, 1, (6, 6))
    a, w, e = tensors(*operands(g, 2, seed=6))
    conv_forward(a, w, g)
    conv_grad_weight(e.flatten(0, 2), a, g)
    conv_grad_input(e, w, g)
    (columns, _, _), (error, stored, _), (error_columns, _, _) = kernel_calls
    assert columns.data_ptr() == stored.data_ptr() == a.data_ptr()
    assert error.data_ptr() == error_columns.data_ptr() == e.data_ptr()


# --- tiles ------------------------------------------------------------------------------------


@given(g=reference.conv_layers(), batch=batches, tile_bytes=st.integers(1, 5000), seed=seeds)
def test_tiles_are_all_rows_in_order_and_bounded(g, batch, tile_bytes, seed):
    a, _, _ = operands(g, batch, seed)
    wanted = reference.windows(a, g).reshape(window_count(g, batch), -1)
    line_bytes = g.out_size[1] * -(-g.contraction // 8) * 8
    reached = 0
    for tile in tiles(torch.from_numpy(a), windows_of(g), USED, outputs=1, tile_bytes=tile_bytes):
        columns = tile.columns.numpy()
        assert tile.rows == slice(reached, reached + len(columns))
        np.testing.assert_array_equal(columns[:, : g.contraction], wanted[tile.rows])
        assert not columns[:, g.contraction :].any()
        assert columns.shape[1] % 8 == 0
        assert columns.nbytes <= max(tile_bytes, line_bytes)
        assert (
            tile.rows.start
            == (tile.images.start * g.out_size[0] + tile.lines.start) * g.out_size[1]
        )
        reached = tile.rows.stop
    assert reached == window_count(g, batch)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_tile_size_gives_the_same_bits(stride):
    g = conv(16, 24, 3, stride, (9, 8))
    a, w, e = tensors(*operands(g, 5, seed=7))
    results, calls = [], []
    for tile_bytes in (1, 3000, 12_000, 1 << 24):
        with ProductRecorder() as recorder:
            products = (
                conv_forward(a, w, g, tile_bytes=tile_bytes),
                conv_grad_weight(e.flatten(0, 2), a, g, tile_bytes=tile_bytes),
                conv_grad_input(e, w, g, tile_bytes=tile_bytes),
            )
        results.append(torch.cat([product.flatten() for product in products]))
        calls.append(len(recorder.products))
    assert sorted(set(calls), reverse=True) == calls  # the tiles did differ
    for result in results[1:]:
        assert torch.equal(result, results[0])


# --- memory -----------------------------------------------------------------------------------


def test_results_of_their_own_memory_stay():
    a, w, e = tensors(*operands(STEM, 2, seed=9))
    for product in (
        lambda a, w, e: conv_forward(a, w, STEM),
        lambda a, w, e: conv_grad_weight(e.flatten(0, 2), a, STEM),
        lambda a, w, e: conv_grad_input(e, w, STEM),
    ):
        first = product(a, w, e)
        kept = first.clone()
        product(-a, -w, e)
        assert torch.equal(first, kept)


def test_with_a_scratch_columns_and_results_lie_in_it(kernel_calls):
    scratch = ConvScratch()
    g = conv(16, 24, 3, 1, (8, 8))
    a, w, e = tensors(*operands(g, 2, seed=10))
    for product, columns_at in (
        (lambda: conv_forward(a, w, g, scratch=scratch), 0),
        (lambda: conv_grad_weight(e.flatten(0, 2), a, g, scratch=scratch), 1),
        (lambda: conv_grad_input(e, w, g, scratch=scratch), 0),
    ):
        found = product()
        called = kernel_calls.pop()
        assert called[columns_at].data_ptr() == scratch.columns.take(1).data_ptr()
        assert called[2].data_ptr() == found.data_ptr() == scratch.sums.take(1).data_ptr()


# --- overflow ---------------------------------------------------------------------------------


def full(*shape: int, value: int = 127):
    return torch.full(shape, value, dtype=torch.int8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("batch", "side"), [(1, CONTRACTION_MAX), (CONTRACTION_MAX, 1), (CONTRACTION_MAX // 8, 8)]
)
def test_the_longest_weight_gradient_of_the_largest_codes_is_an_int32(batch, side, sign):
    g = conv(1, 1, 1, 1, (side, 1))
    e, a = full(batch * side, 1), full(batch, side, 1, 1, value=127 * sign)
    found = conv_grad_weight(e, a, g)
    assert found.dtype == torch.int32
    assert found.item() == sign * 127 * 127 * CONTRACTION_MAX


@pytest.mark.parametrize("tile_bytes", [None, 1 << 16, 1 << 30])
@pytest.mark.parametrize(
    ("batch", "side"), [(1, CONTRACTION_MAX + 1), (CONTRACTION_MAX + 1, 1), (3, 100_000)]
)
def test_a_longer_weight_gradient_is_added_up_in_int64(batch, side, tile_bytes):
    g = conv(1, 1, 1, 1, (side, 1))
    found = conv_grad_weight(
        full(batch * side, 1), full(batch, side, 1, 1), g, tile_bytes=tile_bytes
    )
    assert found.dtype == torch.int64
    assert found.item() == 127 * 127 * batch * side > 2**31 - 1


def test_a_window_that_could_overflow_is_refused():
    g = conv(CONTRACTION_MAX + 1, 1, 1, 1, (1, 1))
    with pytest.raises(ValueError, match="can overflow int32"):
        conv_forward(full(1, 1, 1, g.in_channels), full(1, g.contraction), g)
    g = conv(1, CONTRACTION_MAX + 1, 1, 1, (1, 1))
    with pytest.raises(ValueError, match="can overflow int32"):
        conv_grad_input(full(1, 1, 1, g.out_channels), full(g.out_channels, 1), g)


# --- refusals ---------------------------------------------------------------------------------


def calls(a, w, e):
    """The three products, each with the operands it takes."""
    return {
        "input weight": lambda: conv_forward(a, w, STEM),
        "error input": lambda: conv_grad_weight(e, a, STEM),
        "error weight": lambda: conv_grad_input(e.reshape(-1, 8, 8, e.shape[-1]), w, STEM),
    }


@pytest.mark.parametrize("wrong", ["input", "weight", "error"])
def test_operands_that_are_not_int8_or_do_not_fit_are_refused(wrong):
    a, w, e = tensors(*operands(STEM, 2, seed=11))
    good = {"input": a, "weight": w, "error": e.flatten(0, 2)}
    for bad, kind, message in (
        (good[wrong].float(), TypeError, f"{wrong} must be int8 codes, got torch.float32"),
        (good[wrong][..., :-1], ValueError, rf"{wrong} has shape \[.*\], wanted \["),
    ):
        products = calls(*(good | {wrong: bad}).values())
        used = [product for name, product in products.items() if wrong in name]
        assert len(used) == 2
        for product in used:
            with pytest.raises(kind, match=message):
                product()


# --- how large tiles are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "layer", "most"),
    [
        # An eighth of ResNet-8's first block at batch 32; its last: not too many small ones.
        (32, ConvLayer(16, 16, 3, 1, False, "relu", (32, 32)), 32 * 1024 * 144 // 8),
        (32, ConvLayer(64, 64, 3, 1, False, "relu", (8, 8)), 1 << 18),
        (128, ConvLayer(64, 64, 3, 1, False, "relu", (32, 32)), 1 << 22),
        # ResNet-18's last block: no fewer than what each tile adds up, here the whole matrix.
        (32, ConvLayer(512, 512, 3, 1, False, "relu", (4, 4)), 512 * 4608 * 4),
        # Nothing is copied: 4 MiB whatever the matrix.
        (32, ConvLayer(16, 96, 1, 1, False, "relu6", (32, 32)), 1 << 22),
    ],
)
def test_tiles_are_an_eighth_of_the_matrix_within_bounds(batch, layer, most):
    x = torch.zeros(batch, *layer.input_shape, dtype=torch.int8)
    sizes = [
        tile.columns.nbytes
        for tile in tiles(x, windows_of(layer), USED, outputs=layer.out_channels)
    ]
    assert max(sizes) <= most
    assert max(sizes) >= min(sum(sizes), most) / 2
