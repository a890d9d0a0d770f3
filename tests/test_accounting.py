"""Operations of a step: walked counts against what reaches the kernels, and known figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.accounting import Counts, count_backprop, count_forward_forward
from benchmarks.datasets import made_up
from benchmarks.methods import METHODS
from benchmarks.product_counter import ProductCounter
from benchmarks.trial import METHOD_NAMES, Trial
from engines.look_ahead import LookAhead
from models import ModelSpec

# Nothing here needs padding: rows from 17 up, all others multiples of 8.
BATCH, CLASSES = 24, 24
SHAPES = {"mlp": (1, 8, 8), "resnet8": (8, 8, 8), "efficientnet_b0": (8, 8, 8)}
LOOK_AHEADS = {
    "off": (0.0, "exact", None),
    "exact": (0.5, "exact", None),
    "discounted": (0.5, "discounted", None),
    "window": (0.5, "exact", 1),
}


class Step(TorchDispatchMode):
    """Elements that become int8 codes of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # Floats become codes by way of int32, where they are clipped.
        if func.overloadpacket.__name__ == "_to_copy" and args[0].dtype == torch.int32:
            self.rounded += result.numel() * (result.dtype == torch.int8)
        return result


def one_step(
    method: str, model: str, look_ahead: str = "off"
) -> tuple[Counts, ProductCounter, int]:
    """Walked; products and roundings of a real step."""
    weight, form, window = LOOK_AHEADS[look_ahead]
    trial = Trial(
        method=method, model=model, data="made up", epochs=2, batch=BATCH, hidden=(40, 48, 56),
        # 24 channels and more, so that no product has fewer than 17 rows.
        width={"mlp": 1.0, "resnet8": 1.5, "efficientnet_b0": 0.25}[model],
        look_ahead=(weight, weight), look_ahead_form=form, window=window,
        fusion="eager", masters="float32",
    )  # fmt: skip
    train = made_up(SHAPES[model], CLASSES, 2 * BATCH).train
    spec = trial.spec(SHAPES[model], CLASSES)
    learner = METHODS[method](trial, spec, train)
    learner.start_step(1.0)
    batch = train.take(np.arange(BATCH)).floats(BATCH)
    learner.step(batch.x, batch.labels)  # the first one searches for clips
    with ProductCounter() as counter, Step() as step:
        learner.step(batch.x, batch.labels)
    if method.startswith("ff-"):
        walked = count_forward_forward(spec, BATCH, trial.look_ahead_rule, weight)
    else:
        walked = count_backprop(spec, method, BATCH)
    return walked, counter, step.rounded


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_walk_is_what_a_step_multiplies_and_rounds(method, model):
    walked, counter, rounded = one_step(method, model, "exact")
    assert counter.macs == {"int8": walked.int8_gemm, "float32": walked.float32}
    assert rounded == walked.rounded
    assert walked.int8_depthwise == 0
    in_int8 = not method.startswith("bp-fp32")
    assert (walked.int8 > 0, walked.comparisons > 0, walked.multiply_adds > 0) == (in_int8,) * 3


@pytest.mark.parametrize("look_ahead", LOOK_AHEADS)
@pytest.mark.parametrize("method", ["ff-int8", "ff-int8-two-pass"])
def test_the_walk_follows_the_look_ahead(method, look_ahead):
    walked, counter, rounded = one_step(method, "resnet8", look_ahead)
    assert counter.macs == {"int8": walked.int8_gemm, "float32": walked.float32}
    assert rounded == walked.rounded


def test_depthwise_products_and_gates_are_walked_too():
    walked, counter, _ = one_step("bp-fp32", "efficientnet_b0")
    assert counter.macs == {"int8": 0, "float32": walked.float32}
    in_int8, counter, _ = one_step("bp-int8", "efficientnet_b0")
    assert in_int8.int8_depthwise > 0
    # The gates stay float32; everything else is an integer.
    assert in_int8.float32 == counter.macs["float32"] > 0
    assert in_int8.int8 + in_int8.float32 == walked.float32


# --- known figures ------------------------------------------------------------------------------


def test_the_paper_s_network_has_the_operations_that_the_correction_says():
    """algorithm.md 1.4: 784-500-500-500-10 at batch 10, in millions."""
    spec = ModelSpec("mlp", (784,), 10, (500, 500, 500))
    readout = 10 * 500 * 10
    assert 10 * spec.macs + readout == 8_970_000
    assert count_backprop(spec, "bp-fp32", 10).float32 == 22_990_000
    two_passes = dataclasses.replace(spec, objective="ff")
    two_pass = count_forward_forward(two_passes, 10, LookAhead(), 0.0)
    assert two_pass.int8 == pytest.approx(35.9e6, rel=2e-3)  # there without the label's places


@pytest.mark.parametrize(
    ("look_ahead", "weight", "passes"),
    [
        (LookAhead(), 0.0, 2),
        (LookAhead(window=1), 0.5, 3),
        (LookAhead(window=2), 0.5, 4),
        (LookAhead(), 0.5, 3),
        (LookAhead("discounted"), 0.5, 3),
    ],
)
def test_costs_in_forward_passes(look_ahead, weight, passes):
    """algorithm.md 3.4, for units of one layer; what is not carried to the input is missing."""
    deep = ModelSpec("mlp", (64,), 8, (64,) * 40)
    counts = count_forward_forward(deep, 32, look_ahead, weight)
    assert counts.int8 / (32 * deep.macs) == pytest.approx(passes, abs=0.11)
    assert counts.int8 <= passes * 32 * deep.macs


# --- the counter --------------------------------------------------------------------------------


def test_the_counter_counts_by_shape():
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    codes = torch.ones(24, 16, dtype=torch.int8)
    with ProductCounter() as counter:
        _ = a @ b
        torch.addmm(torch.ones(5), a, b)
        torch.stack([a, a]) @ torch.stack([b, b])
        torch._int_mm(codes, codes.t())
    assert counter.macs == {"float32": 4 * 2 * 3 * 5, "int8": 24 * 16 * 24}


@pytest.mark.parametrize("groups", [1, 4])
def test_the_counter_counts_convolutions_and_their_gradients(groups):
    x = torch.ones(2, 4, 6, 6)
    w = torch.ones(8, 4 // groups, 3, 3, requires_grad=True)
    forward = 2 * 8 * 3 * 3 * (4 // groups) * 9  # stride 2: 3x3 pixels of 9 taps
    with ProductCounter() as counter:
        torch.nn.functional.conv2d(x, w, stride=2, padding=1, groups=groups).sum().backward()
    assert counter.macs["float32"] == 2 * forward  # the input wants no gradient


def test_a_product_that_is_not_counted_is_an_error():
    with pytest.raises(TypeError, match="mv multiplies"), ProductCounter():
        torch.mv(torch.ones(2, 2), torch.ones(2))
