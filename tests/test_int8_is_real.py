"""INT8 is real: every product of learning and predicting multiplies int8 by int8 into int32.

The operations are taken below the engine, from torch's own dispatcher, so nothing that the engine
says about itself is believed.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engines import open_predict_engine, open_train_engine
from models import ModelSpec
from tests import reference

# Operators that sum over products: mm, addmm, bmm, baddbmm, _int_mm, _scaled_mm, mv, dot, vdot,
# matmul, linear, einsum, conv*, inner, tensordot, attention, ...
PRODUCT = re.compile(r"mm|mv$|dot|matmul|linear|einsum|conv|inner|attention|cdist|(?<!_)addr")

SPEC = ModelSpec("mlp", (30,), 4, (50, 45, 40))
UNITS = len(SPEC.hidden)


class ProductRecorder(TorchDispatchMode):
    """Every product that reaches the dispatcher: name, operands and result, copied."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[str, list[torch.Tensor], torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if PRODUCT.search(name):
            operands = [arg.clone() for arg in args if isinstance(arg, torch.Tensor)]
            self.products.append((name, operands, result.clone()))
        return result

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.products]


def batch(rows: int = 22):
    rng = np.random.default_rng(5)
    return rng.normal(size=(rows, 30)).astype(np.float32), rng.integers(0, 4, rows)


def recorded_step(precision: str, look_ahead_weight: float) -> ProductRecorder:
    engine = open_train_engine(SPEC, seed=2, precision=precision)
    with ProductRecorder() as recorder:
        engine.train_step(*batch(), learning_rate=1e-3, look_ahead_weight=look_ahead_weight)
    return recorder


def check_integer_products(recorder: ProductRecorder) -> None:
    for name, operands, result in recorder.products:
        assert name == "_int_mm"
        a, b = operands
        assert a.dtype == b.dtype == torch.int8
        assert result.dtype == torch.int32
        assert min(a.min(), b.min()) >= -127
        # [M, K] @ [K, N]: what the CUDA kernel demands.
        assert a.shape[0] > 16
        assert a.shape[1] % 8 == b.shape[1] % 8 == 0
        wanted = reference.int_matmul(a.numpy(), b.numpy())
        np.testing.assert_array_equal(result.numpy(), wanted)
        assert wanted.any()  # zeros would be exact too


def test_a_training_step_multiplies_only_integers():
    recorder = recorded_step("int8", look_ahead_weight=0.5)
    # K forward, K weight gradients, K - 1 input gradients.
    assert recorder.names == ["_int_mm"] * (3 * UNITS - 1)
    check_integer_products(recorder)


def test_without_look_ahead_no_input_gradient_is_computed():
    recorder = recorded_step("int8", look_ahead_weight=0.0)
    assert recorder.names == ["_int_mm"] * (2 * UNITS)
    check_integer_products(recorder)


@pytest.mark.parametrize("rows", [1, 22])
def test_prediction_multiplies_only_integers(rows):
    learner = open_train_engine(SPEC, seed=2)
    weights = learner.export(classes=(0, 1, 2, 3), version=1, parent=None, last_seq=0)
    with open_predict_engine("torch").open(weights) as engine, ProductRecorder() as recorder:
        engine.predict(batch(rows)[0])
    assert recorder.names == ["_int_mm"] * UNITS
    check_integer_products(recorder)
    # The weight operand is the exported codes themselves, padding aside.
    for unit, (_, (_, b), _) in enumerate(recorder.products):
        codes = weights.arrays[f"units.{unit}.weight.codes"]
        np.testing.assert_array_equal(b.numpy()[: codes.shape[1], : codes.shape[0]], codes.T)


# --- the recorder itself can see what it must not find ----------------------------------------


def test_the_recorder_finds_the_float_products_of_the_fp32_twin():
    recorder = recorded_step("fp32", look_ahead_weight=0.5)
    assert recorder.names == ["mm"] * (3 * UNITS - 1)


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b, v: a @ b,
        lambda a, b, v: a @ v,
        lambda a, b, v: v @ v,
        lambda a, b, v: torch.addmm(v, a, b),
        lambda a, b, v: torch.stack([a, a]) @ torch.stack([b, b]),
        torch.nn.functional.linear,
        lambda a, b, v: torch.einsum("ij,jk->ik", a, b),
        lambda a, b, v: torch.nn.functional.conv1d(a[None], b[:, :, None]),
        lambda a, b, v: torch.tensordot(a, b, 1),
    ],
)
def test_the_recorder_finds_every_way_to_multiply_matrices(product):
    a, b, v = torch.rand(8, 8), torch.rand(8, 8), torch.rand(8)
    with torch.no_grad(), ProductRecorder() as recorder:
        product(a, b, v)
    assert recorder.names
