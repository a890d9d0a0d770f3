"""Engines on a GPU against the CPU's: integers are the same, float sums nearly so.

Skipped where there is no GPU; the training contracts (tests/test_engine_contract.py) run on one
besides. Where tensors lie is seen without one, in tests/test_cuda_placement.py.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from engines import (
    LookAhead,
    Optimizer,
    Recipe,
    canary_agrees,
    is_out_of_memory,
    open_predict_engine,
    open_train_engine,
    release_memory,
)
from engines.conv import conv_forward, conv_grad_input, conv_grad_weight
from engines.depthwise import DepthwiseConv
from engines.device import _refusal
from engines.fusion import Fusion
from engines.int8 import Scratch, int8_matmul
from engines.rounding import NoiseKey, noise, uniform
from models import ModelSpec
from models.layers import ConvLayer
from tests.contracts import bits
from tests.networks import TINY, batch_of

pytestmark = pytest.mark.skipif(_refusal() is not None, reason=f"no GPU: {_refusal()}")

STEP = {"learning_rate": 1e-3, "look_ahead_weight": 0.5}
BATCH = 24
DISCOUNTED = LookAhead("discounted")
RECIPES = {
    "float32": Recipe(optimizer=Optimizer("sgd"), look_ahead=DISCOUNTED),
    "int16": Recipe(masters="int16", optimizer=Optimizer("sgd"), look_ahead=DISCOUNTED),
    "int8": Recipe(masters="int8", optimizer=Optimizer("sgd"), look_ahead=DISCOUNTED),
}
every_network = pytest.mark.parametrize("name", TINY)


def codes(*shape: int, seed: int) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(-127, 128, shape)
    return torch.from_numpy(drawn.astype(np.int8))


# --- integers: the same ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (4096, 33)])
def test_noise_is_the_same(shape):
    key = NoiseKey(2**40 + 7, 123_456, 9)
    words = noise(*shape, key, "cuda").words()
    assert words.is_cuda
    assert torch.equal(words.cpu(), noise(*shape, key).words())
    assert torch.equal(uniform(*shape, key, "cuda").cpu(), uniform(*shape, key))


@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 1, 1), (16, 8, 8), (17, 16, 24), (31, 33, 10), (64, 784, 500), (300, 4096, 18)],
)
@pytest.mark.parametrize("turned", ["neither", "a", "b", "both"])
def test_products_are_the_same(rows, inner, columns, turned):
    a, b = codes(rows, inner, seed=1), codes(inner, columns, seed=2)
    wanted = int8_matmul(a, b)
    if turned in ("a", "both"):
        a = a.t().contiguous().t()
    if turned in ("b", "both"):
        b = b.t().contiguous().t()
    a, b = a.cuda(), b.cuda()
    out = torch.empty(rows, columns, dtype=torch.int32, device="cuda")
    for found in (
        int8_matmul(a, b),
        int8_matmul(a, b, Scratch(torch.int32, "cuda")),
        int8_matmul(a, b, out=out),
    ):
        assert found.dtype == torch.int32
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "channels", "outputs"),
    [(3, 1, (9, 8), 3, 10), (3, 2, (9, 8), 16, 12), (1, 1, (7, 7), 24, 8), (1, 2, (8, 5), 16, 24)],
)
def test_convolutions_are_the_same(kernel, stride, size, channels, outputs):
    layer = ConvLayer(channels, outputs, kernel, stride, False, "relu", size)
    a, w = codes(5, *layer.input_shape, seed=1), codes(*layer.weight_shape, seed=2)
    e = codes(5, *layer.output_shape, seed=3)
    flat = e.flatten(0, 2)
    for found, wanted in (
        (conv_forward(a.cuda(), w.cuda(), layer), conv_forward(a, w, layer)),
        (conv_grad_weight(flat.cuda(), a.cuda(), layer), conv_grad_weight(flat, a, layer)),
        (conv_grad_input(e.cuda(), w.cuda(), layer), conv_grad_input(e, w, layer)),
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolutions_are_the_same(kernel, stride):
    layer = ConvLayer(24, 24, kernel, stride, True, "relu", (9, 8))
    conv = DepthwiseConv(layer, Fusion("eager", "a test"))
    a, w = codes(5, *layer.input_shape, seed=1), codes(*layer.weight_shape, seed=2)
    e = codes(5, *layer.output_shape, seed=3)
    for found, wanted in (
        (conv.forward(a.cuda(), w.cuda()), conv.forward(a, w)),
        (conv.grad_weight(e.cuda(), a.cuda()), conv.grad_weight(e, a)),
        (conv.grad_input(e.cuda(), w.cuda()), conv.grad_input(e, w)),
    ):
        assert found.dtype == torch.int32
        assert torch.equal(found.cpu(), wanted)


# --- float sums: nearly ---------------------------------------------------------------------------


def pair(name: str, recipe: Recipe):
    """The same network on both devices, a few steps old (heads start at zero and teach nothing)."""
    spec = TINY[name]
    cpu = open_train_engine(spec, seed=1, recipe=recipe)
    cpu.standardize_from(batch_of(spec, 64)[0])
    for step in range(3):
        cpu.train_step(*batch_of(spec, BATCH, seed=step), **STEP)
    cuda = open_train_engine(spec, seed=1, recipe=recipe, device="cuda")
    cuda.load_state(cpu.state())
    return cpu, cuda, spec


def check_nearly(found: dict, wanted: dict) -> None:
    """Codes differ by one step, and few of them; floats by what a code in a thousand can do.

    A sum in another order may differ in its last bit, and a value beside the edge between two codes
    then gets the other one.
    """
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value.dtype == np.int64:
            np.testing.assert_array_equal(found[name], value)
        elif value.dtype == np.int8:
            steps = np.abs(found[name].astype(int) - value)
            if name.endswith("remainder"):  # wraps where its code steps
                steps = np.minimum(steps, 256 - steps)
            assert np.mean(steps > 1) <= 0.01, name
        else:
            reach = np.abs(value).max(initial=0.0)
            np.testing.assert_allclose(found[name], value, rtol=1e-2, atol=1e-2 * reach + 1e-7)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@every_network
def test_a_step_from_the_same_state_is_nearly_the_same(name, recipe):
    cpu, cuda, spec = pair(name, recipe)
    assert bits(cuda.state()) == bits(cpu.state())
    batch = batch_of(spec, BATCH, seed=50)
    found, wanted = cuda.train_step(*batch, **STEP), cpu.train_step(*batch, **STEP)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-3)
    check_nearly(cuda.state(), cpu.state())


@every_network
def test_the_float_twin_agrees(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cpu, cuda, spec = pair(name, Recipe(precision="fp32", optimizer=Optimizer("sgd")))
    batch = batch_of(spec, BATCH, seed=50)
    found, wanted = cuda.train_step(*batch, **STEP), cpu.train_step(*batch, **STEP)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-4)
    check_nearly(cuda.state(), cpu.state())


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
def test_two_passes_learn_alike(negatives):
    spec = ModelSpec("mlp", (11,), 5, (40, 40), objective="ff")
    losses = []
    for device in ("cpu", "cuda"):
        engine = open_train_engine(spec, seed=1, recipe=Recipe(negatives=negatives), device=device)
        engine.standardize_from(batch_of(spec, 64)[0])
        reports = [
            engine.train_step(*batch_of(spec, BATCH, seed=step % 4), **STEP) for step in range(40)
        ]
        losses.append(np.mean([report.losses for report in reports[-8:]], axis=0))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


@every_network
def test_a_version_of_either_device_passes_the_canary_of_the_other(name):
    for engine in pair(name, RECIPES["float32"])[:2]:
        weights = engine.export(classes=tuple("abcde"), version=1, parent=None, last_seq=0)
        for device in ("cpu", "cuda"):
            with open_predict_engine("torch", device=device).open(weights) as serving:
                assert canary_agrees(weights, serving)


@every_network
def test_a_frozen_prefix_gives_the_same_latents_and_steps_on_them_are_steps_on_samples(name):
    cpu, cuda, spec = pair(name, RECIPES["float32"])
    for engine in (cpu, cuda):
        engine.freeze(len(spec.units) // 2)
    x, labels = batch_of(spec, BATCH, seed=60)
    found, wanted = cuda.latent(x), cpu.latent(x)
    assert found.scale == wanted.scale
    steps = np.abs(found.codes.astype(int) - wanted.codes)
    assert steps.max() <= 1
    assert np.mean(steps) <= 0.001
    before = cuda.state()
    cuda.train_latent_step(found, labels, **STEP)
    by_latent = bits(cuda.state())
    cuda.load_state(before)
    cuda.train_step(x, labels, **STEP)
    assert bits(cuda.state()) == by_latent


# --- what a GPU alone can tell --------------------------------------------------------------------


@pytest.mark.parametrize("masters", ["float32", "int16"])
@every_network
def test_a_step_waits_for_the_gpu_once_a_loss(name, masters):
    engine = open_train_engine(TINY[name], seed=1, recipe=Recipe(masters=masters), device="cuda")
    batch = batch_of(TINY[name], BATCH)
    engine.train_step(*batch, **STEP)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.train_step(*batch, **STEP)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in seen if "synchroniz" in str(warning.message)]
    assert len(waits) == len(TINY[name].units)


def test_memory_that_runs_out_is_known_and_the_gpu_goes_on():
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(Exception, match=r".") as caught:
            torch.empty(free, dtype=torch.int8, device="cuda")
        assert is_out_of_memory(caught.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    release_memory()
    ones = torch.ones(32, 32, dtype=torch.int8, device="cuda")
    assert (int8_matmul(ones, ones) == 32).all()
