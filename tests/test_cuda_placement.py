"""An engine on a GPU, as far as that shows without one: where every tensor of it lies.

The whole life of an engine passes on a device that computes nothing (tests/fake_cuda.py): an
operation on tensors of two devices raises there, and what the host asks of the device is counted.
What a GPU makes of the operations is tests/test_cuda.py's business, on a board.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from torch.utils._python_dispatch import TorchDispatchMode

from engines import LookAhead, Optimizer, Recipe, open_predict_engine, open_train_engine
from engines.device import to_host
from engines.int8 import int8_matmul
from engines.torch_predict import TorchPredictEngine
from engines.torch_train import TorchTrainEngine
from tests.fake_cuda import FAKE, watched
from tests.networks import NETWORKS, TINY, batch_of
from tests.torch_kernels import has_cuda_kernel

# An operation on such tensors takes milliseconds, and a step of a large network has thousands.
pytestmark = pytest.mark.timeout(600)

STEP = {"learning_rate": 1e-3, "look_ahead_weight": 0.5}
BATCH = 6
SMALL = ("mlp", "resnet8")
WINDOW = LookAhead("discounted", window=1)
FF = Recipe(masters="int16", negatives="hard", look_ahead=WINDOW)
CASES = [
    *((name, "class_goodness", Recipe()) for name in TINY),
    *((name, "ff", FF) for name in TINY),
    *(
        (name, "class_goodness", recipe)
        for name in SMALL
        for recipe in (
            Recipe(masters="int8", optimizer=Optimizer("sgd", weight_decay=0.1)),
            Recipe(masters="int16"),
            Recipe(optimizer=Optimizer("sgd", weight_decay=0.1)),
            Recipe(precision="fp32"),
        )
    ),
]
every_case = pytest.mark.parametrize(
    ("name", "objective", "recipe"),
    CASES,
    ids=[f"{n}-{o}-{r.precision}-{r.masters}-{r.optimizer.name}" for n, o, r in CASES],
)


@pytest.fixture
def watch():
    with watched() as watch:
        yield watch


def opened(name: str, objective: str = "class_goodness", recipe: Recipe | None = None):
    spec = dataclasses.replace(TINY[name], objective=objective)
    engine = TorchTrainEngine(spec, seed=1, recipe=recipe or Recipe(), device=FAKE)
    engine.standardize_from(batch_of(spec, 16)[0])
    return engine, spec


def check_step(watch, engine, spec) -> None:
    """One step: samples and labels go in, each unit's loss comes out, all else stays."""
    watch.forget()
    engine.train_step(*batch_of(spec, BATCH), **STEP)
    assert watch.reads == ["local_unit.judge"] * len(spec.units)
    into = ("cpu", "cuda")
    assert sorted(watch.copies) == [(*into, BATCH), (*into, BATCH * spec.features)]
    # Numbers that kernels take as arguments.
    assert watch.on_host <= 1
    assert watch.numbers <= {"bitwise_xor", "copy_", "div", "fill_", "mul"}
    assert [name for name in watch.operations if not has_cuda_kernel(name)] == []
    for operands in watch.products:
        check_as_tensor_cores_read(*operands)


def check_as_tensor_cores_read(a, b, out) -> None:
    """What `_int_mm` checks on CUDA; and the one order that every cuBLASLt kernel of INT8 takes.

    Memory begins at a multiple of 512 bytes, so places in it tell how pointers are aligned.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    assert (a.dtype, b.dtype, out.dtype) == (torch.int8, torch.int8, torch.int32)
    assert rows > 16
    assert inner % 8 == columns % 8 == 0
    assert a.stride() == (inner, 1)
    assert b.stride() == (1, inner)
    assert out.is_contiguous()
    assert a.storage_offset() % 4 == b.storage_offset() % 4 == 0


@every_case
def test_a_step_lies_on_its_device_and_waits_for_nothing_but_losses(watch, name, objective, recipe):
    engine, spec = opened(name, objective, recipe)
    state = engine.state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    engine.load_state(state)
    # Of integer masters the first step refreshes the columns' moments, and the second does not.
    for _ in range(2 if name in SMALL else 1):
        check_step(watch, engine, spec)
    for key, tensor in engine._tensors().items():
        assert tensor.device.type == ("cpu" if tensor.dtype == torch.int64 else "cuda"), key


@pytest.mark.parametrize(
    ("name", "objective"),
    [*((name, "class_goodness") for name in TINY), ("mlp", "ff"), ("resnet8", "ff")],
)
def test_a_version_is_exported_and_answers(watch, name, objective):
    engine, spec = opened(name, objective)
    weights = engine.export(classes=tuple("abcde"), version=1, parent=None, last_seq=0)
    with TorchPredictEngine(weights, FAKE) as serving:
        watch.forget()
        answer = serving.predict(batch_of(spec, BATCH)[0])
    assert answer.goodness.shape == (BATCH, spec.max_classes)
    assert watch.reads == []
    into, out = ("cpu", "cuda", BATCH * spec.features), ("cuda", "cpu", answer.goodness.size)
    assert watch.copies == [into, out]
    for operands in watch.products:
        check_as_tensor_cores_read(*operands)


@pytest.mark.parametrize("name", ["mlp", "resnet8", "efficientnet_b0"])  # every kind of unit
def test_a_frozen_prefix_answers_and_what_is_behind_it_learns(watch, name):
    engine, spec = opened(name)
    units = len(spec.units) // 2
    engine.freeze(units)
    watch.forget()
    latent = engine.latent(batch_of(spec, BATCH)[0])
    assert latent.codes.dtype == np.int8
    assert {(before, after) for before, after, _ in watch.copies[1:]} == {("cuda", "cpu")}
    watch.forget()
    engine.train_latent_step(latent, batch_of(spec, BATCH)[1], **STEP)
    assert watch.reads == ["local_unit.judge"] * (len(spec.units) - units)
    assert {(before, after) for before, after, _ in watch.copies} == {("cpu", "cuda")}
    state = engine.state()
    engine.load_state(state)
    engine.train_step(*batch_of(spec, BATCH), **STEP)
    engine.export(classes=tuple("abcde"), version=1, parent=None, last_seq=0)


@pytest.mark.parametrize("batch", [1, 2, 17, 32])
@pytest.mark.parametrize("name", SMALL)
def test_products_are_such_as_tensor_cores_read_whatever_the_batch(watch, name, batch):
    engine, spec = opened(name)
    engine.train_step(*batch_of(spec, batch), **STEP)
    assert watch.products
    for operands in watch.products:
        check_as_tensor_cores_read(*operands)


# --- the same rules on the CPU, where nothing enforces them --------------------------------------


class ProductSizes(TorchDispatchMode):
    """(M, K, N) of every integer product."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._int_mm:
            assert args[0].dtype == args[1].dtype == torch.int8
            self.sizes.append((*args[0].shape, args[1].shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 2, 17, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cpu_multiplies_no_shape_that_cuda_refuses(name, batch):
    engine = open_train_engine(NETWORKS[name], seed=1)
    with ProductSizes() as seen:
        engine.train_step(*batch_of(NETWORKS[name], batch), **STEP)
        weights = engine.export(classes=(0, 1), version=1, parent=None, last_seq=0)
        with open_predict_engine("torch").open(weights) as serving:
            serving.predict(batch_of(NETWORKS[name], batch)[0])
    assert seen.sizes
    for rows, inner, columns in seen.sizes:
        assert rows > 16
        assert inner % 8 == columns % 8 == 0


# --- the rig itself can see what it must not find -------------------------------------------------


def test_tensors_of_two_devices_do_not_meet(watch):
    here, there = torch.ones(3), torch.ones(3, device=FAKE.name)
    with pytest.raises(FakeTensorDeviceMismatchError):
        here + there
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    assert to_host(there).tolist() == [1, 1, 1]
    assert watch.copies == [("cuda", "cpu", 3)]
    assert watch.reads == []
    there.sum().item()
    assert len(watch.reads) == 1


def test_operations_without_a_cuda_kernel_are_told_apart():
    assert has_cuda_kernel("_int_mm.out")
    assert has_cuda_kernel("add.Tensor")  # by the delegate that it names
    assert has_cuda_kernel("flatten.using_ints")  # made of others
    assert not has_cuda_kernel("mkldnn_linear")


def test_the_order_of_operands_is_seen(watch):
    a = torch.ones(40, 24, dtype=torch.int8, device=FAKE.name)
    int8_matmul(a.t(), a)
    check_as_tensor_cores_read(*watch.products[0])
    with pytest.raises(AssertionError):
        check_as_tensor_cores_read(a.t(), a, watch.products[0][2])
