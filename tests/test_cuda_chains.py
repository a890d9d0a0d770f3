"""Chains in kernels: what each network's chains compute eager, on the same tensors."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

import engines.fusion
import engines.torch_train
from engines import (
    Optimizer,
    Recipe,
    code_step,
    dense,
    masters,
    norm_passes,
    open_train_engine,
)
from engines.cuda_chains import kernel_chains, open_chains
from engines.feature import Feature
from engines.fusion import Fusion, open_fusion
from engines.int8 import QTensor
from engines.precision import PRECISIONS, Accumulated
from engines.rounding import NoiseKey, noise
from tests.agreement import assert_agrees
from tests.cuda_rig.kernel_fixtures import cuda_driver, launcher, pycuda_rig
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS
from tests.networks import TINY, batch_of

__all__ = ["cuda_driver", "launcher", "pycuda_rig"]  # fixtures, used by name

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)
INT8, FP32 = PRECISIONS["int8"], PRECISIONS["fp32"]
STEP = {"learning_rate": 1e-2, "look_ahead_weight": 0.5}
# Chains without a sum of floats, whose results have the same bits.
EXACT = {"requantize", "sgd_step"}


@pytest.fixture(scope="module")
def chains(launcher):
    return kernel_chains(launcher)


@dataclasses.dataclass(frozen=True)
class Beside(Fusion):
    """Runs chains eager, and those that have kernels in these too; both must agree."""

    met: set = dataclasses.field(default_factory=set, hash=False)

    def fuse(self, chain):
        if chain not in self.kernels:
            return chain

        def run(*arguments):
            wanted = chain(*arguments)
            found = self.kernels[chain](*arguments)
            place = f"{chain.__module__}.{chain.__name__}"
            if chain.__name__ in EXACT:
                assert_same(found, wanted, place)
            assert_agrees(found, wanted, place)
            self.met.add(place.removeprefix("engines."))
            return wanted

        return run


def assert_same(found, wanted, place: str) -> None:
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype, place
        assert torch.equal(found, wanted), place
    elif isinstance(wanted, (tuple, dict)):
        names = [*wanted] if isinstance(wanted, dict) else range(len(wanted))
        assert len(found) == len(names), place
        for name in names:
            assert_same(found[name], wanted[name], f"{place}[{name}]")
    else:
        assert found == wanted, place


def opened(name: str, fusion: Fusion, kind: str, optimizer: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.torch_train, "open_fusion", lambda *_: fusion)
        recipe = Recipe(masters=kind, optimizer=Optimizer(optimizer))
        return open_train_engine(TINY[name], seed=1, recipe=recipe)


ADAM = {"code_step.adam_step", "code_step.refreshed_columns"}
NORM = {"norm_passes.normalize", "norm_passes.errors"}


@pytest.mark.parametrize(
    ("network", "kind", "optimizer", "wanted"),
    [
        ("mlp", "float32", "adam", {"dense.forward", "dense.backward", "masters.requantize"}),
        ("mlp", "int16", "adam", ADAM | {"dense.forward", "dense.backward"}),
        ("mlp", "int8", "sgd", {"dense.forward", "dense.backward", "code_step.sgd_step"}),
        ("resnet8", "int16", "sgd", NORM | {"code_step.sgd_step"}),
        ("mobilenet_v2", "int8", "adam", ADAM | NORM | {"depthwise.forward"}),
        ("efficientnet_b0", "int16", "adam",
         ADAM | NORM | {"depthwise.forward"}),
    ],
)  # fmt: skip
def test_every_call_of_a_training_step(chains, network, kind, optimizer, wanted):
    beside = Beside("kernels", "a test", kernels=chains)
    engine = opened(network, beside, kind, optimizer)
    # Small products take the place of padded ones up to 16 rows; a convolution has many anyway.
    for rows in (6, 20) if network == "mlp" else (6,):
        assert engine.train_step(*batch_of(TINY[network], rows), **STEP).finite
    assert beside.met == wanted


@pytest.mark.parametrize("network", ["mlp", "resnet8"])
def test_a_network_learns_in_kernels_as_it_does_eager(chains, network):
    losses = []
    for fusion in (Fusion("kernels", "a test", kernels=chains), Fusion("eager", "a test")):
        engine = opened(network, fusion, "int16", "adam")
        steps = (batch_of(TINY[network], 12, seed=seed) for seed in range(3))
        losses.append([engine.train_step(*batch, **STEP).losses for batch in steps])
    # A code that differs by one where float sums differ in a last bit; three steps of it.
    np.testing.assert_allclose(*losses, rtol=0.02)


# --- sums that are exact in any order: the same bits ----------------------------------------------


def integers(seed: int, most: int, *shape: int, dtype=torch.int32):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-most, most + 1, shape)).to(dtype)


def test_dense_forward_has_the_same_bits(chains):
    """Activities are small integers: no square, and no sum of them, is rounded."""
    a = Feature(integers(1, 2, 5, 40, dtype=torch.int8), torch.tensor(0.5))
    weight = QTensor(integers(2, 2, 300, 40, dtype=torch.int8), torch.full((300, 1), 2.0))
    arguments = INT8, a, weight, integers(3, 4, 300, dtype=torch.float32)
    assert_same(chains[dense.forward](*arguments), dense.forward(*arguments), "forward")


def test_dense_backward_has_the_same_bits(chains):
    rows, columns = 70, 300
    weight = QTensor(integers(1, 127, columns, 40, dtype=torch.int8), torch.rand(columns, 1))
    arguments = (
        INT8, integers(2, 1000, rows, columns, dtype=torch.float32),
        Feature(integers(3, 127, rows, 40, dtype=torch.int8), torch.tensor(0.1)),
        integers(4, 127, rows, columns, dtype=torch.int8), weight,
        noise(rows, columns, NoiseKey(1, 2, 3)), True, True,
    )  # fmt: skip
    assert_same(chains[dense.backward](*arguments), dense.backward(*arguments), "backward")


@pytest.mark.parametrize("remainder", [True, False])
def test_a_step_of_adam_has_the_same_bits(chains, remainder):
    rows, columns = 9, 300
    # Row sums of squares that float32 holds.
    gradient = Accumulated(integers(1, 200, rows, columns), torch.rand(rows, 1) * 1e-3)
    initial = torch.from_numpy(np.random.default_rng(2).standard_normal((rows, columns))).float()
    state = code_step.first_codes(initial, remainder=remainder) | {
        "momentum": integers(3, 127, rows, columns, dtype=torch.int8),
        "momentum_scale": torch.rand(rows, 1),
        "momentum_largest": torch.rand(rows, 1) * 127,
        "row_moment": torch.rand(rows, 1) * 1e-4,
        "column_moment": torch.rand(1, columns) * 1e-4,
    }
    factors = torch.tensor([1e-2, 1.0 - 1e-4, 0.5, 0.25])
    arguments = gradient, state, factors, noise(rows, columns, NoiseKey(1, 2, 3))
    step = code_step.adam_step
    assert_same(chains[step](*arguments), step(*arguments), "adam")


def test_refreshed_columns_have_the_same_bits(chains):
    gradient = Accumulated(integers(1, 100, 70, 300), torch.full((70, 1), 0.5))
    arguments = gradient, torch.rand(1, 300)
    refresh = code_step.refreshed_columns
    assert_same(chains[refresh](*arguments), refresh(*arguments), "refresh")


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_a_batch_norm_has_the_same_bits(chains, activation):
    shape = 4, 6, 4, 40
    channels = shape[3]
    sums = Accumulated(integers(1, 100, *shape), torch.rand(channels) + 0.1)
    gamma, beta = torch.rand(channels) + 0.5, torch.rand(channels)
    arguments = INT8, sums, gamma, beta, activation
    wanted = norm_passes.normalize(*arguments)
    assert_same(chains[norm_passes.normalize](*arguments), wanted, "normalize")

    output, inverse = wanted[:2]
    for later in (
        Accumulated(integers(2, 100, *shape), torch.rand(4, 1, 1, 1)),
        Accumulated(integers(3, 100, *shape, dtype=torch.float32), torch.ones(())),
    ):
        behind = (
            INT8, later, output, (gamma, beta, inverse), torch.rand(channels),
            noise(4 * 6 * 4, channels, NoiseKey(1, 2, 3)), True, True,
        )  # fmt: skip
        found, wanted_errors = chains[norm_passes.errors](*behind), norm_passes.errors(*behind)
        assert_same(found, wanted_errors, "errors")


# --- choosing them --------------------------------------------------------------------------------


def test_opened_on_a_board_they_want_its_tensors(cuda_driver, tmp_path):
    fusion = open_fusion("kernels", open_kernels=functools.partial(open_chains, tmp_path))
    assert fusion.reason == "asked for by name; 9 chains in CUDA kernels, others eager"
    with pytest.raises(ValueError, match=r"^x is on cpu; wanted cuda$"):
        fusion.fuse(masters.requantize)(INT8, torch.ones(2, 3))


def test_without_a_device_a_run_by_default_is_eager_and_says_why(
    cuda_driver, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAKE_CUDA_NODEV", "1")
    monkeypatch.setattr(engines.fusion, "_refusal", lambda *device: "no triton")
    fusion = open_fusion("auto", open_kernels=functools.partial(open_chains, tmp_path))
    assert fusion.name == "eager"
    assert "no triton; nor do our kernels: no GPU 0: cuInit" in fusion.reason


# --- what kernels do not know ---------------------------------------------------------------------


def test_the_float_twin_runs_the_chain_itself(chains):
    x = torch.randn(3, 5)
    weight = QTensor(torch.randn(7, 5), torch.ones(7, 1))
    arguments = FP32, Feature(x, torch.ones(())), weight, torch.zeros(7)
    assert_same(chains[dense.forward](*arguments), dense.forward(*arguments), "forward")


def test_sums_in_int64_run_the_chain_itself(chains):
    state = code_step.first_codes(torch.randn(3, 5), remainder=False) | {
        "momentum": torch.zeros(3, 5, dtype=torch.int8),
        "momentum_scale": torch.ones(3, 1),
        "momentum_largest": torch.zeros(3, 1),
    }
    gradient = Accumulated(integers(1, 9, 3, 5, dtype=torch.int64), torch.ones(3, 1))
    arguments = gradient, state, torch.tensor([0.1, 1, 1, 1]), noise(3, 5, NoiseKey(1, 2, 3))
    step = code_step.sgd_step
    assert_same(chains[step](*arguments), step(*arguments), "sgd")
