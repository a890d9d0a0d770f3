"""Kernels for images, through the real pycuda on a fake driver: bit for bit what NumPy says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines import cuda_conv_kernels as kernels
from engines import depthwise
from engines.cuda_driver import KernelError
from engines.fusion import Fusion
from engines.im2col import ConvScratch, Windows, tiles
from engines.rounding import NoiseKey, noise
from tests import conv_reference, reference
from tests import kernel_reference as oracle
from tests.cuda_rig.kernel_fixtures import cuda_driver, launcher, pycuda_rig
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS
from tests.test_cuda_kernels import codes, same, seeds, spread, tensors

__all__ = ["cuda_driver", "launcher", "pycuda_rig"]  # fixtures, used by name

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)
F = np.float32
KEY = NoiseKey(7, 3, 1)
few = settings(max_examples=20)
# Batch, height, width, channels; more channels than one block has, and fewer.
images = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3, 8, 31, 33, 40])
)
activations = st.sampled_from(["none", "relu", "relu6"])


# --- operands and products ------------------------------------------------------------------------


@few
@given(
    shape=images,
    taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    origin=st.tuples(st.integers(-2, 1), st.integers(-2, 1)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    activation=activations,
    seed=seeds,
    data=st.data(),
)
def test_columns(launcher, shape, taps, stride, origin, grid, activation, seed, data):
    x = codes(np.random.default_rng(seed), shape)
    start = data.draw(st.integers(0, grid[0] - 1))
    lines = slice(start, data.draw(st.integers(start + 1, grid[0])))
    cap = np.array(50, np.int8) if activation == "relu6" else None
    found = kernels.im2col(
        launcher, *tensors(x), Windows(taps, stride, origin, grid), lines, activation, *tensors(cap)
    )
    active = x if activation == "none" else np.clip(x, 0, 50 if activation == "relu6" else 127)
    wanted = oracle.columns(active, taps, stride, origin, lines, grid[1])
    inner = wanted.shape[1]
    assert found.shape[1] == -(-inner // 8) * 8
    np.testing.assert_array_equal(found[:, :inner].numpy(), wanted)
    assert not found[:, inner:].any()


def test_columns_are_those_of_the_eager_tiles(launcher):
    x = torch.from_numpy(codes(np.random.default_rng(1), (2, 6, 7, 5)))
    windows = Windows((3, 3), 2, (-1, -1), (3, 4))
    for tile in tiles(x, windows, ConvScratch(), outputs=8, tile_bytes=600):
        found = kernels.im2col(launcher, x[tile.images], windows, tile.lines)
        assert torch.equal(found, tile.columns)


def test_relu6_alone_wants_the_code_of_6(launcher):
    x, cap = torch.zeros(1, 2, 2, 1, dtype=torch.int8), torch.zeros((), dtype=torch.int8)
    windows = Windows((1, 1), 1, (0, 0), (2, 2))
    for activation, given_ in (("relu", cap), ("relu6", None)):
        with pytest.raises(ValueError, match="relu6 alone wants one"):
            kernels.im2col(launcher, x, windows, slice(0, 2), activation, given_)


@few
@given(g=conv_reference.conv_layers(depthwise=True), batch=st.integers(1, 3), seed=seeds)
def test_depthwise(launcher, g, batch, seed):
    rng = np.random.default_rng(seed)
    a, w = codes(rng, (batch, *g.input_shape)), codes(rng, g.weight_shape)
    in_kernel = {depthwise.forward: functools.partial(kernels.depthwise, launcher)}
    layer = depthwise.DepthwiseConv(g, Fusion("kernels", "a test", kernels=in_kernel))
    same(layer.forward(*tensors(a, w)), conv_reference.depthwise_forward(a, w, g))


def test_channels_that_lie_apart_are_refused(launcher):
    seen = torch.zeros(1, 3, 4, 4, dtype=torch.int8).permute(0, 2, 3, 1)
    windows = seen.unfold(1, 3, 1).unfold(2, 3, 1)
    with pytest.raises(ValueError, match="channels lie 16 apart"):
        kernels.depthwise(launcher, windows, torch.zeros(3, 3, 3, dtype=torch.int32), 3)


# --- a batch norm's passes ------------------------------------------------------------------------


@few
@given(shape=images, seed=seeds)
def test_channel_moments(launcher, shape, seed):
    sums = np.random.default_rng(seed).integers(-(2**27), 2**27, shape, dtype=np.int32)
    found = kernels.channel_moments(launcher, torch.from_numpy(sums))
    wide, pixels = sums.astype(F), F(shape[1] * shape[2])
    same(found.mean, oracle.pixel_sums(wide) / pixels)
    same(found.square, oracle.pixel_sums(wide * wide) / pixels)
    same(found.low, sums.min(axis=(1, 2)))
    same(found.high, sums.max(axis=(1, 2)))


@few
@given(shape=images, seed=seeds)
@example(shape=(5, 100, 50, 40), seed=0)  # a million: a fused product moves a code in 10^5
def test_affine_codes(launcher, shape, seed):
    rng = np.random.default_rng(seed)
    sums = rng.integers(-(10**6), 10**6, shape, dtype=np.int32)
    factor, shift = (rng.standard_normal((2, shape[3])) * [[1e-4], [20]]).astype(F)
    found = kernels.affine_codes(launcher, *tensors(sums, factor, shift))
    same(found, oracle.nearest(sums.astype(F) * factor + shift))


@few
@given(
    shape=images,
    activation=activations,
    integer=st.booleans(),
    shared=st.booleans(),
    wanted=st.sampled_from([(True, True), (True, False), (False, True)]),
    seed=seeds,
)
def test_the_error_behind_a_norm(launcher, shape, activation, integer, shared, wanted, seed):
    rng = np.random.default_rng(seed)
    count, channels = shape[0], shape[3]
    values = rng.integers(-(10**6), 10**6, shape, dtype=np.int32) if integer else spread(rng, shape)
    q = codes(rng, shape)
    six = np.array(50, F) if activation == "relu6" else None
    slope = rng.standard_normal((1 if shared else count, channels)).astype(F)
    offset, tilt = rng.standard_normal((2, channels)).astype(F)
    error = kernels.NormError(*tensors(values, q), activation, *tensors(six))
    slopes = kernels.Slopes(*tensors(slope, offset, tilt))

    dz = oracle.norm_error(values, q, activation, six)
    sums, products = kernels.norm_error_sums(launcher, error)
    same(sums, oracle.pixel_sums(dz))
    same(products, oracle.pixel_sums(dz * q.astype(F)))

    du = slope[:, None, None] * dz + offset + tilt * q.astype(F)
    reach = kernels.norm_error_reach(launcher, error, slopes)
    same(reach, np.abs(du).max(axis=(1, 2)))

    per_channel = F(127) / np.maximum(np.abs(du).max(axis=(0, 1, 2)), F(1e-6))
    per_sample = rng.random((count, channels)).astype(F) * per_channel.min()
    by_channel, by_sample = wanted
    found = kernels.norm_error_codes(
        launcher, error, slopes,
        *tensors(per_channel if by_channel else None, per_sample if by_sample else None),
        noise(count * shape[1] * shape[2], channels, KEY),
    )  # fmt: skip
    low, high = oracle.halves((count * shape[1] * shape[2], channels), KEY.word())
    assert [codes_ is not None for codes_ in found] == [*wanted]
    if by_channel:
        same(found[0], oracle.stochastic(du * per_channel, low.reshape(shape)))
    if by_sample:
        steps = du * per_sample[:, None, None]
        same(found[1], oracle.stochastic(steps, high.reshape(shape)))


def test_a_batch_that_a_grid_cannot_hold_is_refused(launcher):
    sums = torch.zeros(65_536, 1, 1, 1, dtype=torch.int32)
    with pytest.raises(KernelError, match=r"channel_moments .* along y 65535 at most: split"):
        kernels.channel_moments(launcher, sums)


def test_the_oracle_of_columns_is_that_of_a_plain_sum():
    x = np.arange(9).reshape(1, 3, 3, 1)
    found = oracle.columns(x, (2, 2), 1, (-1, -1), slice(0, 2), 2)
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 3], [0, 1, 3, 4]]
    assert reference.int_matmul(found, np.ones((4, 1))).ravel().tolist() == [0, 1, 3, 8]
