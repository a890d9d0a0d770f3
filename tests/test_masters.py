"""Masters: float32 as torch moves them; integer ones by their formulas, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.fusion import Fusion
from engines.masters import open_masters
from engines.precision import PRECISIONS, Accumulated
from engines.recipe import Optimizer
from engines.rounding import NoiseKey
from tests import reference

EAGER, INT8 = Fusion("eager", "a test"), PRECISIONS["int8"]
CODE_KINDS = ("int16", "int8")
FINE = {"int16": 256, "int8": 1}
OPTIMIZERS = [Optimizer("adam"), Optimizer("sgd"), Optimizer("adam", 0.2), Optimizer("sgd", 0.2)]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
B1, B2, EPSILON, MU = 0.9, 0.999, 1e-8, 0.9
ROWS, COLUMNS = 7, 12


def first_weights(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS):
    """Rows of different size, as channels are."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2, 1, size=(rows, 1))
    return torch.from_numpy((rng.normal(size=(rows, columns)) * sizes).astype(np.float32))


def gradient_of(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Accumulated:
    """An int32 accumulator and one scale per row."""
    rng = np.random.default_rng(1000 + seed)
    values = rng.integers(-90_000, 90_000, (rows, columns)).astype(np.int32)
    scale = 10.0 ** rng.uniform(-7, -5, size=(rows, 1))
    return Accumulated(torch.from_numpy(values), torch.from_numpy(scale.astype(np.float32)))


def opened(kind: str, optimizer: Optimizer = OPTIMIZERS[0], weights=None):
    weights = first_weights() if weights is None else weights
    return open_masters(kind, weights, INT8, optimizer, EAGER)


def key(step: int = 0) -> NoiseKey:
    return NoiseKey(5, step, 2)


def copied(masters) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in masters.state().items()}


def held(state) -> np.ndarray:
    """The weights that integer masters stand for, float64: `scale (code + remainder / 256)`."""
    codes = state["codes"].astype(np.float64)
    if "remainder" in state:
        codes = codes + state["remainder"] / 256
    return codes * state["scale"]


# --- float32 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (Optimizer("adam", 0.2), lambda p: torch.optim.AdamW(p, weight_decay=0.2)),
        (Optimizer("sgd"), lambda p: torch.optim.SGD(p, momentum=MU)),
    ],
    ids=["AdamW", "SGD"],
)
def test_float32_masters_are_torchs_and_their_codes_are_remade(optimizer, theirs):
    masters = opened("float32", optimizer)
    parameter = first_weights().requires_grad_()
    other = theirs([parameter])
    other.param_groups[0]["lr"] = 0.01
    for step in range(5):
        gradient = gradient_of(step)
        parameter.grad = gradient.values * gradient.scale
        other.step()
        masters.step(gradient, key(step), 0.01)
        master = masters.state()["weight"]
        torch.testing.assert_close(master, parameter.detach(), rtol=1e-6, atol=1e-7)
        codes, scale = masters.weight
        wanted = reference.absmax_scale(master.numpy(), 1)
        np.testing.assert_array_equal(scale.numpy(), wanted)
        np.testing.assert_array_equal(codes.numpy(), reference.quantize(master.numpy(), wanted))


def test_the_float_twin_multiplies_its_master_and_old_codes_outlive_a_step():
    for precision in PRECISIONS.values():
        masters = open_masters("float32", first_weights(), precision, OPTIMIZERS[1], EAGER)
        before = masters.weight.codes
        kept = before.clone()
        masters.step(gradient_of(0), key(), 1.0)
        # An error still goes back through the weights that made the activity.
        assert torch.equal(before, kept)
        assert not torch.equal(masters.weight.codes, kept)
        if precision.name == "fp32":
            assert torch.equal(masters.weight.dequantize(), masters.state()["weight"])


# --- integer masters: one step by the formulas --------------------------------------------------


def moved(state, gradient: Accumulated, optimizer: Optimizer, rate: float) -> dict[str, np.ndarray]:
    """float64: momentum, weights and second moments after a step, before anything is rounded."""
    g = gradient.values.numpy() * gradient.scale.numpy().astype(np.float64)
    m = state["momentum"] * state["momentum_scale"].astype(np.float64)
    w = held(state) * (1 - rate * optimizer.weight_decay)
    if optimizer.name == "sgd":
        m = MU * m + g
        return {"momentum": m, "weight": w - rate * m}
    t = int(state["step"]) + 1
    # After Shazeer & Stern 2018, arXiv 1804.04235v1, algorithm 2: a mean square per row and column;
    # the columns' at every fourth step, from the first.
    row = B2 * state["row_moment"] + (1 - B2) * (g**2).mean(axis=1, keepdims=True)
    column = state["column_moment"].astype(np.float64)
    if t % 4 == 1:
        column = B2**4 * column + (1 - B2**4) * (g**2).mean(axis=0, keepdims=True)
    m = B1 * m + (1 - B1) * g
    share = np.maximum(column / column.mean() if column.any() else np.ones_like(column), 0.01)
    m_hat, row_hat = m / (1 - B1**t), row / (1 - B2**t)
    w = w - rate * m_hat / (np.sqrt(row_hat) + EPSILON) / np.sqrt(share)
    return {"momentum": m, "weight": w, "row_moment": row, "column_moment": column}


def scale_for(state) -> np.ndarray:
    """Of a step's codes: as it was, or such that the row's largest so far has code 122."""
    scale, largest = (state[name].astype(np.float64) for name in ("scale", "largest"))
    fits = (largest >= 100 * scale) & (largest <= 126 * scale)
    return np.where(fits, scale, np.where(largest > 0, largest / 122, 1.0))


def momentum_scale_for(state, gradient: Accumulated, optimizer: Optimizer) -> np.ndarray:
    """Such that the largest momentum that a row can have has code 127."""
    keep, take = (B1, 1 - B1) if optimizer.name == "adam" else (MU, 1)
    reach = np.abs(gradient.values.numpy() * gradient.scale.numpy().astype(np.float64))
    largest = reach.max(axis=1, keepdims=True) * take + state["momentum_largest"] * keep
    return largest / 127


def check_rounded(found, value, scale, draw, fine: int, slack: float) -> None:
    """`found` is `floor(value / scale * fine + draw)`, float32 rounding of the value aside."""
    steps = value / scale.astype(np.float64) * fine + draw
    limit = 127 * fine
    assert (found >= np.clip(np.floor(steps - slack), -limit, limit)).all()
    assert (found <= np.clip(np.floor(steps + slack), -limit, limit)).all()


@every_optimizer
@pytest.mark.parametrize("kind", CODE_KINDS)
def test_every_step_is_the_one_of_the_formulas(kind, optimizer):
    masters, fine, rate = opened(kind, optimizer), FINE[kind], 0.02
    for step in range(6):
        before, gradient = copied(masters), gradient_of(step)
        wanted = moved(before, gradient, optimizer, rate)
        u1, u2 = (draw * 2.0**-16 for draw in reference.draws((ROWS, COLUMNS), 5, step, 2))
        masters.step(gradient, key(step), rate)
        after = copied(masters)
        np.testing.assert_allclose(after["scale"], scale_for(before), rtol=1e-6)
        np.testing.assert_allclose(
            after["momentum_scale"], momentum_scale_for(before, gradient, optimizer), rtol=3e-6
        )
        largest = np.abs(wanted["weight"]).max(axis=1, keepdims=True)
        np.testing.assert_allclose(after["largest"], largest, rtol=3e-6)
        held_momentum = np.abs(after["momentum"].astype(int)).max(axis=1, keepdims=True)
        np.testing.assert_allclose(
            after["momentum_largest"], held_momentum * after["momentum_scale"], rtol=1e-6
        )
        whole = after["codes"].astype(np.int64) * fine
        if kind == "int16":
            whole += after["remainder"]
        # Of 127 * 256 steps float32 and a draw of 8 bits leave 0.05 uncertain, of 127 0.001.
        check_rounded(whole, wanted["weight"], after["scale"], u1, fine, 5e-2 if fine > 1 else 1e-3)
        check_rounded(after["momentum"], wanted["momentum"], after["momentum_scale"], u2, 1, 1e-3)
        for name in ("row_moment", "column_moment"):
            if optimizer.name == "adam":
                np.testing.assert_allclose(after[name], wanted[name], rtol=1e-5)
            else:
                assert name not in after
        assert after["step"] == step + 1


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_a_column_that_wakes_between_refreshes_moves_ten_times_as_far_at_most(kind):
    masters, rate = opened(kind), 1e-3
    values, scale = gradient_of(0)
    asleep = values.clone()
    asleep[:, 0] = 0
    masters.step(Accumulated(asleep, scale), key(0), rate)  # refreshes the column moments
    before = copied(masters)
    masters.step(Accumulated(values, scale), key(1), rate)
    change = np.abs(held(copied(masters)) - held(before))
    g = values.numpy() * scale.numpy().astype(np.float64)
    row_hat = (
        np.square(g * (np.arange(COLUMNS) > 0)).mean(axis=1) * B2 + np.square(g).mean(axis=1)
    ) / (1 + B2)
    m_hat = np.abs(g[:, 0]) / (1 + B1)
    one = before["scale"][:, 0] / FINE[kind]
    assert (change[:, 0] <= 10 * rate * m_hat / np.sqrt(row_hat) * (1 + 1e-3) + 2 * one).all()
    assert change[:, 0].max() > rate  # it does wake


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_a_first_gradient_of_zero_makes_no_later_step_longer(kind):
    """As behind a linear head, which starts at zero."""
    masters, rate = opened(kind, weights=first_weights() * 100), 1.0
    values, scale = gradient_of(0)
    masters.step(Accumulated(torch.zeros_like(values), scale), key(0), rate)
    before = copied(masters)
    masters.step(Accumulated(values, scale), key(1), rate)
    change = held(copied(masters)) - held(before)
    one = before["scale"] / FINE[kind]
    assert np.sqrt((np.clip(np.abs(change) - one, 0, None) ** 2).mean()) < rate


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_a_row_decays_to_zero_without_a_gradient_and_stays_finite(kind):
    w = first_weights()
    w[1] *= 1e-32
    masters = opened(kind, Optimizer("adam", 0.5), weights=w)
    nothing = torch.zeros(ROWS, COLUMNS, dtype=torch.int32)
    for step in range(3):
        masters.step(Accumulated(nothing, torch.ones(ROWS, 1)), key(step), 1e-3)
    state = copied(masters)
    assert all(np.isfinite(array).all() for array in state.values())
    assert (np.abs(held(state)[1]) <= np.abs(w[1].numpy()) * 1.1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2], ids=str)
@pytest.mark.parametrize("kind", CODE_KINDS)
@pytest.mark.parametrize("size", [1e-9, 1.0])
def test_a_step_that_is_far_too_long_keeps_its_sign(kind, optimizer, size):
    masters = opened(kind, optimizer, first_weights() * size)
    values, scale = gradient_of(0)
    masters.step(Accumulated(values, scale), key(), 1e6)
    large = values.abs() > values.abs().max() / 2
    assert large.any()
    codes = masters.weight.codes
    assert torch.equal(codes[large].sign().int(), -values[large].sign())


@given(
    kind=st.sampled_from(CODE_KINDS),
    optimizer=st.sampled_from(OPTIMIZERS),
    rate=st.sampled_from([1e-6, 1e-3, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_held_stays_within_its_bytes(kind, optimizer, rate, seed):
    masters = opened(kind, optimizer, first_weights(seed))
    for step in range(3):
        masters.step(gradient_of(seed + step), key(step), rate)
        state = copied(masters)
        for name in ("codes", "momentum"):
            assert state[name].dtype == np.int8
            assert np.abs(state[name].astype(int)).max() <= 127
        assert (state["scale"] > 0).all()
        assert all(np.isfinite(array).all() for array in state.values())
        assert ("remainder" in state) == (kind == "int16")
        if kind == "int16":
            assert state["remainder"].dtype == np.int8
    assert np.array_equal(masters.weight.codes.numpy(), state["codes"])
    assert np.array_equal(masters.weight.scale.numpy(), state["scale"])


def test_a_remainder_is_what_is_left_of_the_nearest_code():
    # Largest 122: one code is worth 1, one 256th is worth 1/256.
    w = torch.tensor([[122.0, 0.5, 0.496, -0.5, -0.503, 3 + 127 / 256, 3 + 128 / 256, -121.75]])
    masters = opened("int16", weights=w)
    state = copied(masters)
    assert state["codes"].tolist() == [[122, 1, 0, 0, -1, 3, 4, -122]]
    assert state["remainder"].tolist() == [[0, -128, 127, -128, 127, 127, -128, 64]]
    np.testing.assert_allclose(held(state), w, atol=1 / 512)


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_first_weights_are_held_to_the_nearest(kind):
    w = first_weights(3).numpy()
    state = copied(opened(kind, weights=torch.from_numpy(w)))
    half = state["scale"].astype(np.float64) / FINE[kind] / 2
    assert (np.abs(held(state) - w) <= half * (1 + 1e-3)).all()
    assert not state["momentum"].any()


# --- right on average ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_a_step_far_smaller_than_a_code_moves_by_its_size_on_average(kind):
    columns, keys = 4000, 20
    w = torch.linspace(-1, 1, columns).repeat(2, 1)
    g = torch.ones(2, columns, dtype=torch.int32)
    g[1] = -g[1]
    masters = opened(kind, Optimizer("sgd"), w)
    start = {name: tensor.clone() for name, tensor in masters.state().items()}
    one = 1 / 122 / FINE[kind]  # what can be held
    step = one / 40
    changes, moved_share = [], []
    for number in range(keys):
        masters.load_state(start)
        masters.step(Accumulated(g, torch.full((2, 1), step)), key(number), 1.0)
        change = held(copied(masters)) - held({n: t.numpy() for n, t in start.items()})
        changes.append(change * [[1], [-1]])
        moved_share.append((np.abs(changes[-1]) > one / 2).mean())
    # Each moves by one step with probability 1/40; 3 sigma of the mean of 160,000 of them. In
    # float32 a weight of 32,512 steps is uncertain by 2^-9 of one, a tenth of this probability.
    sigma = one * np.sqrt(1 / 40 * 39 / 40 / (keys * 2 * columns))
    uncertain = one * 2**-9 if kind == "int16" else one * 2**-16
    assert abs(np.mean(changes) + step) < 3 * sigma + uncertain
    assert np.mean(moved_share) == pytest.approx(1 / 40, abs=0.01)


@every_optimizer
@pytest.mark.parametrize("kind", CODE_KINDS)
def test_over_many_keys_weights_and_momentum_are_those_of_the_formulas(kind, optimizer):
    masters, keys, rate = opened(kind, optimizer), 400, 0.01
    for step in range(2):  # so that there is momentum to forget
        masters.step(gradient_of(step), key(step), rate)
    start, gradient = masters.state(), gradient_of(9)
    start = {name: tensor.clone() for name, tensor in start.items()}
    wanted = moved({n: t.numpy() for n, t in start.items()}, gradient, optimizer, rate)
    weights, momenta = [], []
    for number in range(keys):
        masters.load_state(start)
        masters.step(gradient, key(100 + number), rate)
        state = copied(masters)
        weights.append(held(state))
        momenta.append(state["momentum"] * state["momentum_scale"].astype(np.float64))
    for found, value, one in (
        # A step too large for its scale is cut off, and the scale follows one step later.
        (
            weights,
            np.clip(wanted["weight"], -127 * state["scale"], 127 * state["scale"]),
            state["scale"] / FINE[kind],
        ),
        (momenta, wanted["momentum"], state["momentum_scale"]),
    ):
        # A rounding is off by at most half a step's deviation: 5 sigma of the mean of 400, for
        # every one of 84 elements; and what float32 leaves uncertain of 32,512 steps.
        bound = one * (5 * 0.5 / np.sqrt(keys) + 0.02)
        assert (np.abs(np.mean(found, axis=0) - value) < bound).all()


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_many_small_steps_add_up(kind):
    """What nearest rounding would lose altogether: 200 steps of a twentieth of a code."""
    w = torch.linspace(-1, 1, 500).repeat(3, 1)
    g = torch.ones(3, 500, dtype=torch.int32)
    rate = 1 / 122 / 20
    optimizer = Optimizer("sgd")
    masters = opened(kind, optimizer, w)
    exact, m = held(copied(masters)), np.zeros((3, 500))
    for step in range(200):
        masters.step(Accumulated(g, torch.full((3, 1), 0.1)), key(step), rate)
        m = MU * m + g.numpy() * 0.1
        exact = exact - rate * m
    start = w.double().numpy()
    change = (held(copied(masters)) - start).mean()
    assert change == pytest.approx((exact - start).mean(), rel=0.02)


# --- what does not move -------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2], ids=lambda o: o.name)
@pytest.mark.parametrize("kind", CODE_KINDS)
def test_without_a_gradient_nothing_moves(kind, optimizer):
    nothing = Accumulated(torch.zeros(ROWS, COLUMNS, dtype=torch.int32), torch.ones(ROWS, 1))
    masters = opened(kind, optimizer)
    before = copied(masters)
    for step in range(20):
        masters.step(nothing, key(step), 1e-3)
    after = copied(masters)
    np.testing.assert_array_equal(after["scale"], before["scale"])
    assert not after["momentum"].any()
    difference = np.abs(held(after) - held(before)) / before["scale"] * FINE[kind]
    if kind == "int8":
        assert not difference.any()
    # A 256th of a code and a draw do not fit 24 bits together: once in so many times one is gained.
    assert difference.max() <= 3
    assert (difference > 0.5).mean() <= 0.1


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_decay_shrinks_weights_that_have_no_gradient(kind):
    nothing = Accumulated(torch.zeros(40, 500, dtype=torch.int32), torch.ones(40, 1))
    masters = opened(kind, Optimizer("sgd", 0.5), first_weights(rows=40, columns=500))
    before = held(copied(masters))
    for step in range(20):
        masters.step(nothing, key(step), 0.02)
    # Each step takes a hundredth; stochastic rounding has it on average over 20,000 weights.
    ratio = (held(copied(masters)) * np.sign(before)).sum() / np.abs(before).sum()
    assert ratio == pytest.approx(0.99**20, abs=2e-3)
