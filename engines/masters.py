"""Where a weight matrix lives between steps, beside the int8 codes that are multiplied.

    float32  a float32 master and float32 optimizer state; codes are made again after each step.
             Bytes a weight with Adam: 4 + 8 + 1.
    int16    the codes *are* the master, each with an int8 remainder of 1/256 of a code:
             w = scale (code + remainder / 256). Bytes a weight with Adam: 1 + 1 + 1.
    int8     the codes alone are the master: w = scale * code. Bytes a weight: 1 + 1.

The two integer kinds round stochastically when a step is added, so a step smaller than what can be
held moves the weight with the right probability; and their optimizer state is small:

    momentum         int8 with a scale per row, rounded stochastically (after Dettmers et al. 2022,
                     arXiv 2110.02861v2, but linear codes)
    second moment    one mean square per row and one per column, v_ij = R_i C_j / mean(C)
                     (after Shazeer & Stern 2018, arXiv 1804.04235v1, algorithm 2, without its
                     clipping). R is of this step; C is refreshed at every fourth, since a pass down
                     the columns costs as much as the step, and its share C_j / mean(C) counts as
                     0.01 at least: a column that was silent at the refresh must not leap, and one
                     that always is nearly so moves less than Adam would have it. eps is on R's root

Scales follow the weights, but not at every step: while a row's largest magnitude has a code from
100 to 126 its scale stays, so that a weight without a gradient keeps its code; else the row is
refitted to have code 122. In the words of torchao's glossary the kind float32 is INT8
mixed-precision training; int8 and int16 are quantized training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engines.fusion import Fusion, stored
from engines.int8 import QTensor, Scratch, round_steps, scale_of
from engines.optim import BETA1, BETA2, EPSILON, MOMENTUM, FloatMasters
from engines.precision import Accumulated, Precision
from engines.recipe import Optimizer
from engines.rounding import DRAW_BITS, Noise, NoiseKey, draws, noise
from models.spec import CODE_MAX

# A remainder counts parts of a code, 256 of them.
_FINE_BITS = 8
_FINE = 1 << _FINE_BITS
# Steps from one refresh of the column moments to the next, and what a refresh leaves of them.
_COLUMN_STEPS = 4
_COLUMN_KEEP = BETA2**_COLUMN_STEPS
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


class Masters(ABC):
    """One weight matrix: what is multiplied, and what moves it."""

    @property
    @abstractmethod
    def weight(self) -> QTensor:
        """Codes `[O, K]` and scales `[O, 1]`."""

    @abstractmethod
    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """One optimizer step.

        Args:
            gradient: Of the loss, `[O, K]`; read at once, and not kept.
            key: Of the rounding noise.
            learning_rate: Step size.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything a later `load_state` needs to take the same next step; not copied."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave.

        Raises:
            KeyError: A name is missing.
        """


def open_masters(
    kind: str, initial: Tensor, precision: Precision, optimizer: Optimizer, fusion: Fusion
) -> Masters:
    """Masters of a weight matrix.

    Args:
        kind: One of `engines.recipe.MASTER_NAMES`, checked; the float twin has float32 only.
        initial: float32 `[O, K]`.
        precision: Makes the codes.
        optimizer: Moves them.
        fusion: Fuses the step.
    """
    if kind == "float32":
        return Float32Masters(initial, precision, optimizer, fusion)
    return CodeMasters(initial, optimizer, fusion, remainder=kind == "int16")


class Float32Masters(Masters):
    """See the module: `float32`."""

    def __init__(
        self, initial: Tensor, precision: Precision, optimizer: Optimizer, fusion: Fusion
    ) -> None:
        self._precision = precision
        self._masters = FloatMasters({"weight": initial}, optimizer)
        self._gradient = Scratch(torch.float32, initial.device)
        self._requantize = fusion.fuse(_requantize)
        self._weight = self._codes()

    @property
    def weight(self) -> QTensor:
        """See `Masters.weight`."""
        return self._weight

    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """See `Masters.step`."""
        values = gradient.values
        dequantized = torch.mul(values, gradient.scale, out=self._gradient.take(*values.shape))
        self._masters.step({"weight": dequantized}, learning_rate)
        self._weight = self._codes()

    def _codes(self) -> QTensor:
        return QTensor(*self._requantize(self._precision, self._masters.tensors["weight"]))

    def state(self) -> dict[str, Tensor]:
        """See `Masters.state`."""
        return self._masters.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Masters.load_state`."""
        self._masters.load_state(state)
        self._weight = self._codes()


class CodeMasters(Masters):
    """See the module: `int16` and `int8`.

    Args:
        initial: float32 `[O, K]`.
        optimizer: Moves them.
        fusion: Fuses the step.
        remainder: Keep 1/256ths of a code.
    """

    def __init__(
        self, initial: Tensor, optimizer: Optimizer, fusion: Fusion, *, remainder: bool
    ) -> None:
        largest = initial.abs().amax(dim=1, keepdim=True)
        scale = scale_of(largest * (CODE_MAX / _REFITTED))
        fine = _FINE if remainder else 1
        codes, rest = _split((initial / scale * fine).round().to(torch.int32), fine)
        self._optimizer = optimizer
        self._state = {"codes": codes, "scale": scale, "largest": largest}
        if rest is not None:
            self._state["remainder"] = rest
        self._state |= {
            "momentum": torch.zeros_like(codes),
            "momentum_scale": torch.ones_like(scale),
            "momentum_largest": torch.zeros_like(scale),
        }
        self._steps = 0
        adam = optimizer.name == "adam"
        if adam:
            self._state["row_moment"] = torch.zeros_like(scale)
            self._state["column_moment"] = scale.new_zeros((1, initial.shape[1]))
        self._refresh = fusion.fuse(_refreshed_columns) if adam else None
        self._step = fusion.fuse(_adam if adam else _sgd)

    @property
    def weight(self) -> QTensor:
        """See `Masters.weight`."""
        return QTensor(self._state["codes"], self._state["scale"])

    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """See `Masters.step`."""
        state = dict(self._state)
        number = self._steps = self._steps + 1
        if self._refresh is not None and number % _COLUMN_STEPS == 1:
            state["column_moment"] = self._refresh(gradient, state["column_moment"])
        decay = 1.0 - learning_rate * self._optimizer.weight_decay
        factors = [learning_rate, decay, 1.0 - BETA1**number, 1.0 - BETA2**number]
        rows, columns = gradient.values.shape
        randomness = noise(rows, columns, key, gradient.values.device)
        self._state = state | self._step(gradient, state, torch.tensor(factors), randomness)

    def state(self) -> dict[str, Tensor]:
        """See `Masters.state`."""
        return self._state | {"step": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Masters.load_state`."""
        self._steps = int(state["step"])
        self._state = {name: state[name].clone() for name in self._state}


def _requantize(precision: Precision, master: Tensor) -> tuple[Tensor, Tensor]:
    scale = precision.scale(master.abs().amax(dim=1, keepdim=True))
    return precision.quantize(master, scale), scale


def _refreshed_columns(gradient: Accumulated, column_moment: Tensor) -> Tensor:
    """The column moments after a refresh."""
    square = gradient.dequantize().square().mean(dim=0, keepdim=True)
    return _COLUMN_KEEP * column_moment + (1.0 - _COLUMN_KEEP) * square


def _adam(
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
    rate, decay, correction1, correction2 = factors.unbind()
    square = gradient.values.to(torch.float32).square()
    mean = square.mean(dim=1, keepdim=True) * gradient.scale.square()
    row = BETA2 * state["row_moment"] + (1.0 - BETA2) * mean
    column = state["column_moment"]
    # The change is m_ij / (1 - b1^t), over sqrt(R_i / (1 - b2^t)) + eps, over sqrt(C_j / mean(C)).
    row_rate = rate / correction1 / ((row / correction2).sqrt() + EPSILON)
    mean_column = column.mean()
    # Before any gradient (behind a head that starts at zero, the first is zero) all are alike.
    share = torch.where(mean_column > 0, column / mean_column, 1.0)
    column_factor = share.clamp_min(_LEAST_SHARE).rsqrt()
    update = _Update(BETA1, 1.0 - BETA1, decay, row_rate, column_factor)
    return _move(gradient, state, update, randomness) | {"row_moment": row}


def _sgd(
    gradient: Accumulated, state: Mapping[str, Tensor], factors: Tensor, randomness: Noise
) -> dict[str, Tensor]:
    """A step of SGD with momentum; see `_adam`."""
    rate, decay, _, _ = factors.unbind()
    return _move(gradient, state, _Update(MOMENTUM, 1.0, decay, rate, None), randomness)


class _Update(NamedTuple):
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


def _move(
    gradient: Accumulated, state: Mapping[str, Tensor], update: _Update, randomness: Noise
) -> dict[str, Tensor]:
    """New momentum and new weights in one pass: rounded stochastically, and how large they are.

    What the codes will be worth is settled before the pass. Of the weights: the present scale, as
    long as the row's largest magnitude lies well within it. Of the momentum: the largest magnitude
    that it can have.

    Args:
        gradient: `[O, K]`.
        state: Of `CodeMasters`.
        update: Of which optimizer.
        randomness: Of the rounding.
    """
    scale, largest = state["scale"], state["largest"]
    inside = (largest >= scale * _REFIT_BELOW) & (largest <= scale * _REFIT_ABOVE)
    new_scale = stored(torch.where(inside, scale, scale_of(largest * (CODE_MAX / _REFITTED))))
    reach = gradient.values.to(torch.float32).abs().amax(dim=1, keepdim=True) * gradient.scale
    momentum_scale = stored(scale_of(state["momentum_largest"] * update.keep + reach * update.take))
    fine = _FINE if "remainder" in state else 1
    # Factors per row, made once: a compiler would make them anew for every weight. All of them
    # lead to steps of the new codes.
    held_factor = stored((scale * update.decay / new_scale).clamp_max(_LARGEST_REFIT))
    kept_factor = stored(state["momentum_scale"] * update.keep / momentum_scale)
    taken_factor = stored(
        (gradient.scale * update.take / momentum_scale).clamp_max(_LARGEST_FACTOR)
    )

    momentum = state["momentum"] * kept_factor + gradient.values * taken_factor
    held = state["codes"].to(torch.int32)
    if "remainder" in state:
        held = (held << _FINE_BITS) + state["remainder"]
    change = momentum * stored(
        (update.row_rate / new_scale * momentum_scale).clamp_max(_LARGEST_CHANGE) * fine
    )
    if update.column_factor is not None:
        change = change * stored(update.column_factor)
    steps = held * held_factor - change
    u1, u2 = draws(randomness.words())
    # 16 bits of a code's fraction in either kind, of which int16 has 8 in its remainder.
    bits = DRAW_BITS if fine == 1 else DRAW_BITS - _FINE_BITS
    codes, rest = _split(round_steps(steps, u1, CODE_MAX * fine, bits), fine)
    momentum_codes = round_steps(momentum, u2)
    moved = {
        "codes": codes,
        "scale": new_scale,
        "largest": steps.abs().amax(dim=1, keepdim=True) * (new_scale / fine),
        "momentum": momentum_codes.to(torch.int8),
        "momentum_scale": momentum_scale,
        # As float32: along a row compilers have a maximum of floats in registers to the end, and
        # end one of integers in memory, element by element: a fifth of this loop's time.
        "momentum_largest": momentum_codes.to(torch.float32).abs().amax(dim=1, keepdim=True)
        * momentum_scale,
    }
    return moved if rest is None else moved | {"remainder": rest}


def _split(steps: Tensor, fine: int) -> tuple[Tensor, Tensor | None]:
    """Nearest code, and what is left in `fine` parts of one: int8 each."""
    if fine == 1:
        return steps.to(torch.int8), None
    # The lowest byte of a number of 256ths is what is left of it, with its sign.
    return ((steps + _FINE // 2) >> _FINE_BITS).to(torch.int8), steps.to(torch.int8)
