"""One step of weights that are their own codes: the chains of `engines.masters.CodeMasters`.

Two passes over a matrix, the gradient's rows and the move, with what is one number a row between
them. That part is a function of its own, since a kernel may take a pass's place
(engines/cuda_chains.py) and shall not have arithmetic of its own for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engines.fusion import stored
from engines.int8 import round_steps, scale_of
from engines.optim import BETA1, BETA2, EPSILON, MOMENTUM
from engines.precision import Accumulated
from engines.rounding import DRAW_BITS, Noise, draws
from models.spec import CODE_MAX

# A remainder counts parts of a code, 256 of them.
_FINE_BITS = 8
_FINE = 1 << _FINE_BITS
# Steps from one refresh of the column moments to the next, and what a refresh leaves of them.
COLUMN_STEPS = 4
_COLUMN_KEEP = BETA2**COLUMN_STEPS
# A column's share of the mean of all counts as this at least: one that was silent at the last
# refresh moves at most ten times as far as the row's second moment says.
_LEAST_SHARE = 0.01
# Of a factor per row: no row that is all but zero makes an infinity to multiply a zero by.
_LARGEST_FACTOR = 2.0**20
# New codes for each old one, and codes that a weight may move for each code of its momentum: 127
# times either, and a column's tenfold of the second, have room together in the 2^15 codes that can
# be rounded stochastically. Only rows that are all but zero meet these bounds.
_LARGEST_REFIT, _LARGEST_CHANGE = 96.0, 16.0
_REFIT_BELOW, _REFITTED, _REFIT_ABOVE = 100.0, 122.0, 126.0


def first_codes(initial: Tensor, *, remainder: bool) -> dict[str, Tensor]:
    """The part of the state that float32 weights `[O, K]` give."""
    largest = initial.abs().amax(dim=1, keepdim=True)
    scale = scale_of(largest * (CODE_MAX / _REFITTED))
    fine = _FINE if remainder else 1
    codes, rest = _split((initial / scale * fine).round().to(torch.int32), fine)
    state = {"codes": codes, "scale": scale, "largest": largest}
    return state if rest is None else state | {"remainder": rest}


def refreshed_columns(gradient: Accumulated, column_moment: Tensor) -> Tensor:
    """The column moments after a refresh."""
    square = gradient.dequantize().square().mean(dim=0, keepdim=True)
    return column_moments(square, column_moment)


def column_moments(square: Tensor, column_moment: Tensor) -> Tensor:
    """New column moments of the gradient's mean squares and the old ones, `[1, K]` each."""
    return _COLUMN_KEEP * column_moment + (1.0 - _COLUMN_KEEP) * square


def adam_step(
    gradient: Accumulated, state: Mapping[str, Tensor], factors: Tensor, randomness: Noise
) -> dict[str, Tensor]:
    """A step of Adam: what changes of the state.

    Args:
        gradient: `[O, K]`, of scale `[O, 1]`.
        state: Of `CodeMasters`, the column moments refreshed.
        factors: float32 `[4]`, on the host: learning rate, what decay leaves, and the two bias
            corrections.
        randomness: Of the rounding, `[O, K]`.
    """
    square = gradient.values.to(torch.float32).square()
    mean = square.mean(dim=1, keepdim=True) * gradient.scale.square()
    update, row = adam_update(mean, state, factors)
    return _move(gradient, state, update, randomness) | {"row_moment": row}


def adam_update(
    mean: Tensor, state: Mapping[str, Tensor], factors: Tensor
) -> tuple[Update, Tensor]:
    """How Adam moves weights, and the new row moments; `mean`: of the squares, `[O, 1]`."""
    rate, decay, correction1, correction2 = factors.unbind()
    row = BETA2 * state["row_moment"] + (1.0 - BETA2) * mean
    column = state["column_moment"]
    # The change is m_ij / (1 - b1^t), over sqrt(R_i / (1 - b2^t)) + eps, over sqrt(C_j / mean(C)).
    row_rate = rate / correction1 / ((row / correction2).sqrt() + EPSILON)
    mean_column = column.mean()
    # Before any gradient (behind a head that starts at zero, the first is zero) all are alike.
    share = torch.where(mean_column > 0, column / mean_column, 1.0)
    column_factor = share.clamp_min(_LEAST_SHARE).rsqrt()
    return Update(BETA1, 1.0 - BETA1, decay, row_rate, column_factor), row


def sgd_step(
    gradient: Accumulated, state: Mapping[str, Tensor], factors: Tensor, randomness: Noise
) -> dict[str, Tensor]:
    """A step of SGD with momentum; see `adam_step`."""
    return _move(gradient, state, sgd_update(factors), randomness)


def sgd_update(factors: Tensor) -> Update:
    """How SGD moves weights."""
    rate, decay, _, _ = factors.unbind()
    return Update(MOMENTUM, 1.0, decay, rate, None)


class Update(NamedTuple):
    """What tells the optimizers' updates apart.

    Args:
        keep: What is left of the momentum, before the gradient comes to it.
        take: How much of the gradient does.
        decay: What is left of a weight, `[]`.
        row_rate: How far a weight moves by its momentum: a factor per row, `[O, 1]` or `[]`, ...
        column_factor: ... and one per column, `[1, K]`; None: 1.
    """

    keep: float
    take: float
    decay: Tensor
    row_rate: Tensor
    column_factor: Tensor | None


class RowFactors(NamedTuple):
    """What settles, before the pass over the weights, where it leads; float32 `[O, 1]` each.

    Args:
        kept: Steps of the new momentum that one of the old is worth, after its decay.
        taken: The same of a gradient's sum.
        held: Steps of the new weights that one of the old is worth, after theirs.
        change: How many of them a step of the new momentum moves.
        scale: Of the new codes.
        momentum_scale: Of the new momentum.
    """

    kept: Tensor
    taken: Tensor
    held: Tensor
    change: Tensor
    scale: Tensor
    momentum_scale: Tensor


def row_factors(
    reach: Tensor, gradient_scale: Tensor, state: Mapping[str, Tensor], update: Update
) -> RowFactors:
    """What the codes will be worth is settled before the pass that makes them.

    Of the weights: the present scale, as long as the row's largest magnitude lies well within it.
    Of the momentum: the largest magnitude that it can have. Factors per row are made once: a
    compiler would make them anew for every weight.

    Args:
        reach: Largest magnitude of each row of the gradient, `[O, 1]`.
        gradient_scale: `[O, 1]`.
        state: Of `CodeMasters`.
        update: Of which optimizer.
    """
    scale, largest = state["scale"], state["largest"]
    inside = (largest >= scale * _REFIT_BELOW) & (largest <= scale * _REFIT_ABOVE)
    new_scale = stored(torch.where(inside, scale, scale_of(largest * (CODE_MAX / _REFITTED))))
    momentum_scale = stored(scale_of(state["momentum_largest"] * update.keep + reach * update.take))
    change = (update.row_rate / new_scale * momentum_scale).clamp_max(_LARGEST_CHANGE)
    taken = (gradient_scale * update.take / momentum_scale).clamp_max(_LARGEST_FACTOR)
    return RowFactors(
        kept=stored(state["momentum_scale"] * update.keep / momentum_scale),
        taken=stored(taken),
        held=stored((scale * update.decay / new_scale).clamp_max(_LARGEST_REFIT)),
        change=stored(change * _fine(state)),
        scale=new_scale,
        momentum_scale=momentum_scale,
    )


def _fine(state: Mapping[str, Tensor]) -> int:
    return _FINE if "remainder" in state else 1


def _move(
    gradient: Accumulated, state: Mapping[str, Tensor], update: Update, randomness: Noise
) -> dict[str, Tensor]:
    """New momentum and new weights in one pass: rounded stochastically, and how large they are.

    Args:
        gradient: `[O, K]`.
        state: Of `CodeMasters`.
        update: Of which optimizer.
        randomness: Of the rounding.
    """
    reach = gradient.values.to(torch.float32).abs().amax(dim=1, keepdim=True) * gradient.scale
    factors = row_factors(reach, gradient.scale, state, update)
    fine = _fine(state)

    momentum = state["momentum"] * factors.kept + gradient.values * factors.taken
    held = state["codes"].to(torch.int32)
    if "remainder" in state:
        held = (held << _FINE_BITS) + state["remainder"]
    change = momentum * factors.change
    if update.column_factor is not None:
        change = change * stored(update.column_factor)
    steps = held * factors.held - change
    u1, u2 = draws(randomness.words())
    # 16 bits of a code's fraction in either kind, of which int16 has 8 in its remainder.
    bits = DRAW_BITS if fine == 1 else DRAW_BITS - _FINE_BITS
    codes, rest = _split(round_steps(steps, u1, CODE_MAX * fine, bits), fine)
    momentum_codes = round_steps(momentum, u2)
    moved = {"codes": codes, "momentum": momentum_codes.to(torch.int8)}
    if rest is not None:
        moved["remainder"] = rest
    # As float32: along a row compilers have a maximum of floats in registers to the end, and end
    # one of integers in memory, element by element: a fifth of this loop's time.
    largest_momentum = momentum_codes.to(torch.float32).abs().amax(dim=1, keepdim=True)
    largest = steps.abs().amax(dim=1, keepdim=True)
    return moved | row_state(factors, largest, largest_momentum, state)


def row_state(
    factors: RowFactors, largest: Tensor, largest_momentum: Tensor, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What changes of the state that is one number a row.

    Args:
        factors: Of the pass.
        largest: Of each row's new weights, in steps, `[O, 1]`.
        largest_momentum: Of each row's new momentum, in codes, `[O, 1]`.
        state: Before the pass.
    """
    return {
        "scale": factors.scale,
        "largest": largest * (factors.scale / _fine(state)),
        "momentum_scale": factors.momentum_scale,
        "momentum_largest": largest_momentum * factors.momentum_scale,
    }


def _split(steps: Tensor, fine: int) -> tuple[Tensor, Tensor | None]:
    """Nearest code, and what is left in `fine` parts of one: int8 each."""
    if fine == 1:
        return steps.to(torch.int8), None
    # The lowest byte of a number of 256ths is what is left of it, with its sign.
    return ((steps + _FINE // 2) >> _FINE_BITS).to(torch.int8), steps.to(torch.int8)
