"""Look-ahead by itself: every form against autograd, in float64, on a small chain of units.

The units are made hard to please: two layers each, weights that turn to NaN the moment they are
updated, errors that do the moment they are used, what is passed back at the next call, activations
that are gone with the update.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from engines.look_ahead import (
    Chain,
    LookAhead,
    WindowedLookAhead,
    constant_schedule,
    linear_schedule,
    paper_schedule,
    ramp_schedule,
)

UNITS, BATCH, CLASSES = 5, 6, 3
FORMS = ("exact", "discounted")
WINDOWS = (0, 1, 2, UNITS - 1, UNITS + 2)
WEIGHTS = (0.3, 0.7, 1.0, 1.6)
# The same float64 chain rule in another order, through ten layers.
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


class Network:
    """`y_l = tanh(relu(z_{l-1} A) B)`, `z_l = y_l / n_l`; L_l: cross-entropy over the first y_l."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)

        def normal(*shape: int):
            return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7

        self.x = normal(BATCH, 4)
        self.labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        widths = [4, 7, 5, 8, 6, 7]
        self.weights = [
            (normal(inputs, 9), normal(9, outputs))
            for inputs, outputs in itertools.pairwise(widths)
        ]
        self.cache: dict[int, tuple] = {}
        self.gradients: dict[int, tuple] = {}
        self.calls: list[tuple[str, int]] = []
        self.passed = None
        self.most_alive = 0

    def spoil_passed(self) -> None:
        """What was passed back is good until the next pass of any unit."""
        if self.passed is not None:
            self.passed.fill_(torch.nan)

    def forward(self, unit: int, z):
        self.spoil_passed()
        A, B = self.weights[unit]
        hidden = (z @ A).relu()
        y = (hidden @ B).tanh()
        n = (y.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
        self.cache[unit] = (z, hidden, y, n)
        self.most_alive = max(self.most_alive, len(self.cache))
        return y / n

    def loss(self, y):
        return cross_entropy(y[:, :CLASSES], self.labels)

    def own_error(self, unit: int):
        y = self.cache[unit][2]
        error = torch.zeros_like(y)
        right = one_hot(self.labels, CLASSES)
        error[:, :CLASSES] = (y[:, :CLASSES].softmax(dim=1) - right) / BATCH
        return error

    def error(self, unit: int, passed, weight: float):
        return self.own_error(unit) + weight * self.later_error(unit, passed)

    def later_error(self, unit: int, passed):
        _, _, y, n = self.cache[unit]
        z = y / n
        return (passed - z * (passed * z).mean(dim=1, keepdim=True)) / n

    def backward(self, unit: int, error, *, update: bool, propagate: bool):
        self.calls.append(("update" * update + "propagate" * propagate, unit))
        (z, hidden, y, _), (A, B) = self.cache[unit], self.weights[unit]
        at_B = error * (1 - y.square())
        at_A = (at_B @ B.t()) * (hidden > 0)
        self.spoil_passed()
        self.passed = at_A @ A.t() if propagate else None
        if update:
            assert unit not in self.gradients
            self.gradients[unit] = (z.t() @ at_A, hidden.t() @ at_B)
            A.fill_(torch.nan)
            B.fill_(torch.nan)
            del self.cache[unit]
        error.fill_(torch.nan)
        return self.passed

    def copied(self, passed):
        return passed.clone()

    def chain(self) -> Chain:
        return Chain(
            units=UNITS,
            own_error=self.own_error,
            error=self.error,
            later_error=self.later_error,
            copied=self.copied,
            backward=self.backward,
        )

    def run(self, step) -> Network:
        z = self.x
        for unit in range(UNITS):
            z = self.forward(unit, z)
            step.after_forward(unit)
        step.finish()
        return self

    def count(self, word: str) -> int:
        return sum(word in call for call, _ in self.calls)


def plain_chain(own_errors, backward) -> Chain:
    """Units that are numbers, and pass back what they are at the activity before."""

    def own_error(unit):
        return torch.tensor(own_errors[unit])

    return Chain(
        units=len(own_errors),
        own_error=own_error,
        error=lambda unit, passed, weight: own_error(unit) + weight * passed,
        later_error=lambda unit, passed: passed,
        copied=lambda passed: passed,
        backward=backward,
    )


def trained(form: str, window: int | None, weight: float) -> Network:
    network = Network()
    return network.run(LookAhead(form, window).step(network.chain(), weight))


def share(form: str, window: int | None, weight: float, distance: int) -> float:
    """What the loss of a unit `distance` further on counts."""
    if distance == 0:
        return 1.0
    if window is not None and distance > window:
        return 0.0
    return weight if form == "exact" else weight**distance


def autograd(form: str, window: int | None, weight: float) -> list[tuple]:
    """Per unit, the gradient of the sum of losses that its update is to follow."""
    network = Network()
    leaves = [tuple(w.requires_grad_() for w in pair) for pair in network.weights]
    losses, z = [], network.x
    for unit in range(UNITS):
        z = network.forward(unit, z)
        losses.append(network.loss(network.cache[unit][2]))
    found = []
    for unit, pair in enumerate(leaves):
        shares = [share(form, window, weight, j - unit) for j in range(unit, UNITS)]
        total = sum(s * loss for s, loss in zip(shares, losses[unit:], strict=True))
        found.append(torch.autograd.grad(total, pair, retain_graph=True))
    return found


def assert_gradients(network: Network, wanted) -> None:
    assert sorted(network.gradients) == [*range(UNITS)]
    for unit, pair in enumerate(wanted):
        torch.testing.assert_close(network.gradients[unit], pair, **CLOSE)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("window", [None, *WINDOWS])
@pytest.mark.parametrize("form", FORMS)
def test_every_unit_follows_its_own_loss_and_its_share_of_the_later_ones(form, window, weight):
    assert_gradients(trained(form, window, weight), autograd(form, window, weight))


@pytest.mark.parametrize("form", FORMS)
def test_lambda_one_is_back_propagation_of_the_sum_of_all_losses(form):
    network = Network()
    leaves = [w.requires_grad_() for pair in network.weights for w in pair]
    z, total = network.x, 0.0
    for unit in range(UNITS):
        z = network.forward(unit, z)
        total = total + network.loss(network.cache[unit][2])
    wanted = torch.autograd.grad(total, leaves)
    pairs = zip(wanted[::2], wanted[1::2], strict=True)
    assert_gradients(trained(form, None, 1.0), pairs)


@pytest.mark.parametrize(
    ("window", "weight"), [(0, 0.7), *((window, 0.0) for window in (None, *WINDOWS))]
)
@pytest.mark.parametrize("form", FORMS)
def test_lambda_zero_or_no_window_is_the_detached_computation_bit_for_bit(form, window, weight):
    local = Network()
    z = local.x
    for unit in range(UNITS):
        z = local.forward(unit, z)
        local.backward(unit, local.own_error(unit), update=True, propagate=False)
    network = trained(form, window, weight)
    for unit in range(UNITS):
        assert all(map(torch.equal, network.gradients[unit], local.gradients[unit]))


@pytest.mark.parametrize("window", [UNITS - 1, UNITS, 100])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("form", FORMS)
def test_the_ring_buffer_itself_over_all_units_equals_the_sweep(form, weight, window):
    network, discount = Network(), weight if form == "discounted" else 1.0
    network.run(WindowedLookAhead(network.chain(), weight, discount, window))
    full = trained(form, None, weight)
    assert_gradients(network, [full.gradients[unit] for unit in range(UNITS)])


# --- what it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "window", "weight", "weight_gradients_only", "both", "input_gradients_only", "alive"),
    [
        ("exact", None, 0.0, 5, 0, 0, 5),
        ("exact", None, 1.0, 1, 4, 0, 5),
        # Two errors in the three units between the first and the last.
        ("exact", None, 0.5, 4, 1, 3, 5),
        ("discounted", None, 0.0, 5, 0, 0, 5),
        ("discounted", None, 0.5, 1, 4, 0, 5),
        ("exact", 0, 0.5, 5, 0, 0, 1),
        ("exact", 1, 0.5, 5, 0, 4, 2),
        ("exact", 2, 0.5, 5, 0, 4 + 3, 3),
        ("exact", 3, 0.5, 5, 0, 4 + 3 + 2, 4),
        ("discounted", 2, 0.5, 5, 0, 4 + 3, 3),
        # Nothing to wait for.
        ("exact", 2, 0.0, 5, 0, 0, 1),
        # All units: the sweep.
        ("discounted", 4, 0.5, 1, 4, 0, 5),
        ("exact", 9, 1.0, 1, 4, 0, 5),
    ],
)
def test_passes_and_units_alive_per_step(
    form, window, weight, weight_gradients_only, both, input_gradients_only, alive
):
    network = trained(form, window, weight)
    calls = [call for call, _ in network.calls]
    assert calls.count("update") == weight_gradients_only
    assert calls.count("updatepropagate") == both
    assert calls.count("propagate") == input_gradients_only
    assert network.most_alive == alive
    assert not network.cache


def test_hops_of_the_ring_buffer_over_all_units_grow_as_the_square():
    network = Network()
    network.run(WindowedLookAhead(network.chain(), 0.5, 1.0, UNITS - 1))
    assert network.count("propagate") == UNITS * (UNITS - 1) / 2


def test_a_window_updates_units_while_later_ones_have_yet_to_run():
    network = Network()
    step = LookAhead("exact", 1).step(network.chain(), 0.5)
    z = network.forward(0, network.x)
    step.after_forward(0)
    assert network.calls == []
    network.forward(1, z)
    step.after_forward(1)
    assert network.calls == [("propagate", 1), ("update", 0)]


def test_one_unit_alone():
    for form, window in itertools.product(FORMS, (None, 0, 1)):
        calls = []

        def backward(unit, error, *, update, propagate, calls=calls):
            calls.append((unit, error.item(), update, propagate))

        chain = plain_chain([3.0], backward)
        step = LookAhead(form, window).step(chain, 0.5)
        step.after_forward(0)
        step.finish()
        assert calls == [(0, 3.0, True, False)]


# --- by hand ----------------------------------------------------------------------------------


def sweep(form: str, weight: float) -> list[tuple[str, int, float]]:
    """The chain y_1 = 2, y_2 = 3 y_1, y_3 = 5 y_2 with L_l = y_l^2 / 2, so that d_l = y_l."""
    factors, activity, calls = (2.0, 3.0, 5.0), (2.0, 6.0, 30.0), []

    def backward(unit, error, *, update, propagate):
        calls.append(("update" * update + "propagate" * propagate, unit, error.item()))
        return factors[unit] * error if propagate else None

    chain = plain_chain(activity, backward)
    LookAhead(form).step(chain, weight).finish()
    return calls


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_exact_linear_chain_by_hand(weight):
    # r_3 = 0, r_2 = 5 * 30 = 150, r_1 = 3 * (6 + 150) = 468: lambda enters no r. A unit is updated
    # only once the sweep has gone through its old weights.
    assert sweep("exact", weight) == [
        ("updatepropagate", 2, 30),
        ("propagate", 1, 6 + 150),
        ("update", 1, 6 + weight * 150),
        ("update", 0, 2 + weight * 468),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_linear_chain_with_lambda_one_needs_one_error_a_unit(form):
    assert sweep(form, 1.0) == [
        ("updatepropagate", 2, 30), ("updatepropagate", 1, 156), ("update", 0, 470),
    ]  # fmt: skip


def test_discounted_linear_chain_by_hand():
    # e_2 = 6 + 150 / 2 = 81, e_1 = 2 + 3 * 81 / 2.
    assert sweep("discounted", 0.5) == [
        ("updatepropagate", 2, 30), ("updatepropagate", 1, 81), ("update", 0, 123.5),
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_lambda_zero_does_not_sweep(form):
    assert sweep(form, 0.0) == [("update", 2, 30), ("update", 1, 6), ("update", 0, 2)]


# --- refusals and schedules -------------------------------------------------------------------


def test_unknown_forms_and_negative_windows_are_refused():
    with pytest.raises(ValueError, match="form 'scalar' is unknown: exact or discounted"):
        LookAhead("scalar")
    with pytest.raises(ValueError, match="window is -1; wanted 0 or more units"):
        LookAhead(window=-1)


def test_a_unit_that_propagates_nothing_is_named():
    def backward(unit, error, *, update, propagate):
        return None

    chain = plain_chain([1.0] * 3, backward)
    for step, culprit in ((LookAhead(), 2), (LookAhead(window=1), 1)):
        driver = step.step(chain, 0.5)
        driver.after_forward(0)
        with pytest.raises(TypeError, match=f"unit {culprit} was asked to propagate its error"):
            driver.after_forward(1) if step.window else driver.finish()


@pytest.mark.parametrize(
    ("schedule", "at_the_start", "halfway", "at_the_end"),
    [
        (constant_schedule(0.4), 0.4, 0.4, 0.4),
        (linear_schedule(0.2, 1.6), 0.2, 0.9, 1.6),
        (ramp_schedule(0.5, until=0.8), 0.0, 0.3125, 0.5),
        (ramp_schedule(0.5), 0.0, 0.5, 0.5),
        (paper_schedule(1000), 0.0, 0.5, 1.0),
    ],
)
def test_schedules(schedule, at_the_start, halfway, at_the_end):
    found = [schedule(progress) for progress in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([at_the_start, halfway, at_the_end])


def test_the_papers_lambda_grows_by_a_thousandth_an_epoch():
    schedule = paper_schedule(epochs=130)
    assert [schedule(epoch / 130) for epoch in (0, 1, 2, 130)] == pytest.approx(
        [0, 0.001, 0.002, 0.13]
    )
