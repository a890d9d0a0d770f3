"""Scales and state of masters; the steps themselves: tests/test_masters.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.precision import Accumulated
from engines.recipe import MASTER_NAMES, Optimizer
from tests.test_masters import (
    CODE_KINDS,
    COLUMNS,
    ROWS,
    copied,
    every_optimizer,
    first_weights,
    gradient_of,
    held,
    key,
    opened,
)

# --- scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODE_KINDS)
@pytest.mark.parametrize(("factor", "stays"), [(0.99, True), (0.5, False), (2.0, False)])
def test_a_scale_stays_while_the_largest_weight_fits_and_follows_when_it_does_not(
    kind, factor, stays
):
    masters = opened(kind, Optimizer("sgd"))
    first = copied(masters)
    goal = held(first) * factor
    # One step that lands on `goal`, and one that goes nowhere.
    values = np.round((held(first) - goal) * 1e6).astype(np.int32)
    masters.step(Accumulated(torch.from_numpy(values), torch.full((ROWS, 1), 1e-6)), key(), 1.0)
    second = copied(masters)
    np.testing.assert_array_equal(second["scale"], first["scale"])
    state = {n: t.clone() for n, t in masters.state().items()}
    state["momentum"].zero_()
    masters.load_state(state)
    nothing = torch.zeros(ROWS, COLUMNS, dtype=torch.int32)
    masters.step(Accumulated(nothing, torch.ones(ROWS, 1)), key(1), 1.0)
    third = copied(masters)
    if stays:
        np.testing.assert_array_equal(third["scale"], first["scale"])
    else:
        np.testing.assert_allclose(third["scale"], second["largest"] / 122, rtol=1e-5)
    np.testing.assert_allclose(second["largest"][:, 0], np.abs(goal).max(axis=1), rtol=1e-4)
    # What outgrew its scale was cut off at code 127, for that one step.
    limit = 127.5 * first["scale"]
    assert (np.abs(held(second)) <= limit).all()
    bound = 1.5 * np.maximum(first["scale"], third["scale"])
    assert (np.abs(held(third) - np.clip(goal, -limit, limit)) <= bound).all()


@pytest.mark.parametrize("kind", MASTER_NAMES)
def test_a_row_without_weights_or_gradient_stays_zero_and_finite(kind):
    w = first_weights()
    w[2] = 0
    values, scale = gradient_of(1)
    values[2] = 0
    masters = opened(kind, weights=w)
    for step in range(3):
        masters.step(Accumulated(values, scale), key(step), 0.1)
    assert not masters.weight.dequantize()[2].any()
    assert masters.weight.dequantize().isfinite().all()
    assert masters.weight.scale[2] == 1


# --- state --------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("kind", MASTER_NAMES)
def test_a_loaded_state_takes_the_same_next_step(kind, optimizer):
    first, second = opened(kind, optimizer), opened(kind, optimizer, first_weights(1))
    for step in range(3):
        first.step(gradient_of(step), key(step), 1e-2)
    given = {name: tensor.clone() for name, tensor in first.state().items()}
    second.load_state(given)
    kept = {name: tensor.clone() for name, tensor in given.items()}
    for masters in (first, second):
        masters.step(gradient_of(9), key(9), 1e-2)
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor), name
        assert torch.equal(given[name], kept[name]), f"{name} was not copied"
    assert all(map(torch.equal, first.weight, second.weight))


@pytest.mark.parametrize("kind", MASTER_NAMES)
def test_a_state_that_lacks_a_name_is_refused(kind):
    masters = opened(kind)
    for name in masters.state():
        state = {n: t for n, t in masters.state().items() if n != name}
        with pytest.raises(KeyError, match=name):
            masters.load_state(state)


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("float32", 12), ("int16", 3), ("int8", 2)])
def test_bytes_a_weight_with_adam(kind, bytes_a_weight):
    masters = opened(kind, weights=first_weights(rows=64, columns=96))
    size = sum(t.numel() * t.element_size() for t in masters.state().values() if t.numel() > 96)
    # The module's table counts the codes that float32 masters are multiplied as, too.
    assert size == 64 * 96 * bytes_a_weight
    assert masters.weight.codes.element_size() == 1


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_a_row_that_all_but_vanished_keeps_its_signs(kind):
    """Its next codes are finer by far than 2^15 of them, which is what a rounding can take."""
    masters = opened(kind)
    state = masters.state()
    state["codes"].zero_()[:, ::2] = 1
    state["largest"].copy_(state["scale"] * 0.002)
    values, scale = gradient_of(0)
    masters.step(Accumulated(torch.zeros_like(values), scale), key(), 1e-3)
    assert (masters.weight.codes[:, ::2] > 0).all()
