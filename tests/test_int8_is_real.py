"""INT8 is real: every product of learning and predicting multiplies int8 by int8 into int32.

The operations are taken below the engine, from torch's own dispatcher, so nothing that the engine
says about itself is believed. Exceptions, named and counted: heads and gates, which see one vector
per sample, are float32. A depthwise layer has no matrix product; its sums are checked by
themselves.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from engines import LookAhead, open_predict_engine, open_train_engine
from engines.depthwise import DepthwiseConv
from models.pooling import pooled_shape
from tests import reference
from tests.networks import NETWORKS, as_kernel, batch_of, opened

# Operators that sum over products: mm, addmm, bmm, baddbmm, _int_mm, _scaled_mm, mv, dot, vdot,
# matmul, linear, einsum, conv*, inner, tensordot, attention, ...
PRODUCT = re.compile(r"mm|mv$|dot|matmul|linear|einsum|conv|inner|attention|cdist|(?<!_)addr")

BATCH = 4
DISCOUNTED = LookAhead("discounted")  # one error a unit, so that every product happens once
every_network = pytest.mark.parametrize("name", NETWORKS)


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
            result_of_one = result.clone() if isinstance(result, torch.Tensor) else result
            self.products.append((name, operands, result_of_one))
        return result

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.products]

    @property
    def integer(self):
        return [(operands, result) for name, operands, result in self.products if name == "_int_mm"]

    @property
    def float_sizes(self) -> Counter:
        """(M, K, N) of everything else; an addmm's first operand is added."""
        sizes = [operands[-2:] for name, operands, _ in self.products if name != "_int_mm"]
        return Counter((*a.shape, b.shape[1]) for a, b in sizes)


def recorded_step(name: str, precision: str, look_ahead_weight: float) -> ProductRecorder:
    engine = opened(NETWORKS[name], precision, DISCOUNTED)
    batch = batch_of(NETWORKS[name], BATCH)
    with ProductRecorder() as recorder:
        engine.train_step(*batch, learning_rate=1e-3, look_ahead_weight=look_ahead_weight)
    return recorder


def check_integer_products(recorder: ProductRecorder) -> None:
    for (a, b), result in recorder.integer:
        assert a.dtype == b.dtype == torch.int8
        assert result.dtype == torch.int32
        assert min(a.min(), b.min()) >= -127
        # [M, K] @ [K, N]: what the CUDA kernel demands.
        assert a.shape[0] > 16
        assert a.shape[1] % 8 == b.shape[1] % 8 == 0
        wanted = reference.int_matmul(a.numpy(), b.numpy())
        np.testing.assert_array_equal(result.numpy(), wanted)
        assert wanted.any()  # zeros would be exact too


def products_of(spec, *, look_ahead: bool) -> int:
    """Integer matrix products of one step: forward, weight gradient, input gradient by phase."""
    total = 0
    for u, unit in enumerate(spec.units):
        for place, (part, layer) in enumerate(unit.layers.items()):
            if getattr(layer, "depthwise", False):
                continue
            first = place == 0 or part == "shortcut"
            propagates = (u > 0 and look_ahead) if first else True
            total += 2 + propagates * phases_with_taps(layer)
    return total


def phases_with_taps(layer) -> int:
    """Input pixels that meet the same taps share a product; 1 for a stride of 1."""
    if not hasattr(layer, "stride"):
        return 1
    found = 1
    for size in layer.in_size:
        places = {(p + layer.padding) % layer.stride for p in range(min(size, layer.stride))}
        found *= sum(place < layer.kernel for place in places)
    return found


def float_products_of(spec, *, learn: bool) -> Counter:
    """(M, K, N) of heads and gates."""
    sizes: Counter = Counter()
    if spec.name == "mlp":
        return sizes
    C = spec.max_classes
    for unit in spec.units if learn else spec.units[-1:]:
        features = int(np.prod(pooled_shape(unit.output_shape)))
        sizes[BATCH, features, C] += 1
        sizes.update([(C, BATCH, features), (BATCH, C, features)] if learn else [])
    for unit in spec.units:
        if gate := unit.parts.get("squeeze_excite"):
            n, r = gate.channels, gate.reduced
            sizes.update([(BATCH, n, r), (BATCH, r, n)])
            if learn:
                # Back through either layer, and the gradients of both.
                sizes.update([(BATCH, n, r), (BATCH, r, n), (n, BATCH, r), (r, BATCH, n)])
    return sizes


@every_network
def test_a_training_step_multiplies_only_integers(name):
    recorder = recorded_step(name, "int8", look_ahead_weight=0.5)
    assert len(recorder.integer) == products_of(NETWORKS[name], look_ahead=True)
    assert recorder.float_sizes == float_products_of(NETWORKS[name], learn=True)
    check_integer_products(recorder)


@every_network
def test_without_look_ahead_no_unit_computes_the_gradient_at_its_input(name):
    recorder = recorded_step(name, "int8", look_ahead_weight=0.0)
    assert len(recorder.integer) == products_of(NETWORKS[name], look_ahead=False)
    check_integer_products(recorder)


@every_network
@pytest.mark.parametrize("rows", [1, BATCH])
def test_prediction_multiplies_only_integers(name, rows):
    spec = NETWORKS[name]
    learner = open_train_engine(spec, seed=2)
    learner.train_step(*batch_of(spec, 8), learning_rate=1e-3, look_ahead_weight=0.0)
    weights = learner.export(classes=(0, 1, 2, 3), version=1, parent=None, last_seq=0)
    with open_predict_engine("torch").open(weights) as engine, ProductRecorder() as recorder:
        engine.predict(batch_of(spec, rows)[0])
    layers = {
        f"units.{u}.{part}." if spec.name != "mlp" else f"units.{u}.": layer
        for u, unit in enumerate(spec.units)
        for part, layer in unit.layers.items()
        if not getattr(layer, "depthwise", False)
    }
    assert len(recorder.integer) == len(layers)
    if rows == BATCH:
        assert recorder.float_sizes == float_products_of(spec, learn=False)
    check_integer_products(recorder)
    # The weight operands are the exported codes themselves, padding aside; shortcuts come last.
    wanted = [weights.arrays[f"{prefix}weight.codes"] for prefix in layers]
    for codes, ((_, b), _) in zip(wanted, recorder.integer, strict=True):
        np.testing.assert_array_equal(b.numpy()[: codes.shape[1], : codes.shape[0]], codes.T)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_depthwise_layers_sum_products_of_int8_in_int32(name, monkeypatch):
    calls = []

    def spied(product):
        function = getattr(DepthwiseConv, product)

        def spy(self, one, other):
            result = function(self, one, other)
            calls.append((product, one.clone(), other.clone(), self._layer, result.clone()))
            return result

        return spy

    for product in ("forward", "grad_weight", "grad_input"):
        monkeypatch.setattr(DepthwiseConv, product, spied(product))
    recorded_step(name, "int8", 0.5)
    blocks = len(NETWORKS[name].units) - 2
    assert Counter(call[0] for call in calls) == dict.fromkeys(
        ("forward", "grad_weight", "grad_input"), blocks
    )
    for product, one, other, layer, result in calls:
        assert one.dtype == other.dtype == torch.int8
        assert result.dtype == torch.int32
        assert result.any()
        np.testing.assert_array_equal(result, depthwise_oracle(product, one, other, layer))


def depthwise_oracle(function, one, other, g):
    """torch's float64 convolution and its gradients: exact, as every sum is below 2^53."""
    like = torch.empty(g.in_channels, 1, g.kernel, g.kernel)
    batch = len(one)
    a = torch.zeros(batch, g.in_channels, *g.in_size, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(*like.shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        if function != "grad_input":
            a.copy_((one if function == "forward" else other).permute(0, 3, 1, 2))
        if function != "grad_weight":
            w.copy_(as_kernel(other, like))
    y = conv2d(a, w, None, g.stride, g.padding, 1, g.in_channels)
    if function == "forward":
        return y.detach().permute(0, 2, 3, 1)
    wanted = a if function == "grad_input" else w
    (grad,) = torch.autograd.grad(y, wanted, one.permute(0, 3, 1, 2).double())
    return grad.permute(0, 2, 3, 1) if wanted is a else grad.flatten(1)


# --- the recorder itself can see what it must not find ----------------------------------------


def test_the_recorder_finds_the_float_products_of_the_fp32_twin():
    recorder = recorded_step("mlp", "fp32", look_ahead_weight=0.5)
    assert recorder.names == ["mm"] * (3 * len(NETWORKS["mlp"].units) - 1)
    recorder = recorded_step("resnet8", "fp32", look_ahead_weight=0.0)
    assert recorder.names.count("convolution") == 9


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
