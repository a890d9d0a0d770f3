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
    second moment    one mean square per row and one per column, v_ij = R_i C_j / mean(R)
                     (Shazeer & Stern 2018, arXiv 1804.04235v1, algorithm 2, without its clipping)

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

from engines.fusion import Fusion
from engines.int8 import CODE_MAX, QTensor, Scratch, scale_of
from engines.optim import BETA1, BETA2, EPSILON, MOMENTUM, FloatMasters
from engines.precision import Accumulated, Precision
from engines.recipe import Optimizer
from engines.rounding import Noise, NoiseKey, draws, noise

# Steps of a remainder in one code.
_FINE = 256
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
            gradient: Of the loss, `[O, K]`; read once, at once.
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
        self._gradient = Scratch(torch.float32)
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
        rows, columns = initial.shape
        largest = initial.abs().amax(dim=1, keepdim=True)
        scale = scale_of(largest * (CODE_MAX / _REFITTED))
        fine = _FINE if remainder else 1
        codes, rest = _split((initial / scale * fine).round().to(torch.int32), fine)
        self._optimizer = optimizer
        self._state = {"codes": codes, "scale": scale, "largest": largest}
        if rest is not None:
            self._state["remainder"] = rest
        self._state |= {
            "momentum": torch.zeros((rows, columns), dtype=torch.int8),
            "momentum_scale": torch.ones((rows, 1)),
            "momentum_largest": torch.zeros((rows, 1)),
            "step": torch.zeros(()),
        }
        if optimizer.name == "adam":
            self._state["row_moment"] = torch.zeros((rows, 1))
            self._state["column_moment"] = torch.zeros((1, columns))
        self._reach = fusion.fuse(_reach)
        self._scales = fusion.fuse(_scales)
        self._moments = fusion.fuse(_moments)
        self._move = fusion.fuse(_move)

    @property
    def weight(self) -> QTensor:
        """See `Masters.weight`."""
        return QTensor(self._state["codes"], self._state["scale"])

    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """See `Masters.step`."""
        state = self._state
        step = float(state["step"].add_(1))
        if self._optimizer.name == "adam":
            keep, take = BETA1, 1.0 - BETA1
            rate = learning_rate / (1.0 - BETA1**step)
            *moments, row_factor, column_factor, reach = self._moments(
                gradient,
                state["row_moment"],
                state["column_moment"],
                torch.tensor(1.0 - BETA2**step),
            )
            state["row_moment"], state["column_moment"] = moments
        else:
            keep, take, rate = MOMENTUM, 1.0, learning_rate
            row_factor, column_factor = torch.ones_like(state["scale"]), torch.ones(1, 1)
            reach = self._reach(gradient)
        decay = 1.0 - learning_rate * self._optimizer.weight_decay
        rows, columns = gradient.values.shape
        scales = self._scales(
            state["scale"], state["largest"], state["momentum_largest"] * keep + reach * take
        )
        moved = self._move(
            _Move(
                gradient.values,
                QTensor(state["codes"], state["scale"] * decay),
                state.get("remainder"),
                QTensor(state["momentum"], state["momentum_scale"] * keep),
                gradient.scale * take,
                row_factor * rate,
                column_factor,
            ),
            scales.per_code,
            scales.per_momentum,
            noise(rows, columns, key),
        )
        state |= {name: value for name, value in moved.items() if value is not None}
        state["scale"], state["momentum_scale"] = scales.code, scales.momentum

    def state(self) -> dict[str, Tensor]:
        """See `Masters.state`."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Masters.load_state`."""
        self._state = {name: state[name].clone() for name in self._state}


def _requantize(precision: Precision, master: Tensor) -> tuple[Tensor, Tensor]:
    scale = precision.scale(master.abs().amax(dim=1, keepdim=True))
    return precision.quantize(master, scale), scale


def _moments(
    gradient: Accumulated, row: Tensor, column: Tensor, correction: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Factored second moment and what it divides by, as a factor per row and one per column.

    And the gradient's reach, its largest magnitude per row, since it is read here anyway.
    """
    square = gradient.dequantize().square()
    row = BETA2 * row + (1.0 - BETA2) * square.mean(dim=1, keepdim=True)
    column = BETA2 * column + (1.0 - BETA2) * square.mean(dim=0, keepdim=True)
    # 1 / (sqrt(R_i C_j / mean(R) / correction) + eps), the eps put on the column's root.
    share = row / row.mean().clamp_min(1e-30)
    row_factor = (share + 1e-12).rsqrt()
    column_factor = ((column / correction).sqrt() + EPSILON).reciprocal()
    return row, column, row_factor, column_factor, square.amax(dim=1, keepdim=True).sqrt()


class _Scales(NamedTuple):
    """Scales that a step's codes are made with, `[O, 1]`, and their reciprocals."""

    code: Tensor
    momentum: Tensor
    per_code: Tensor
    per_momentum: Tensor


def _scales(scale: Tensor, largest: Tensor, momentum_reach: Tensor) -> _Scales:
    """What the step's codes will be worth, before the step is taken.

    Of the weights: the present scale, as long as the row's largest magnitude lies well within it.
    Of the momentum: the largest magnitude that it can have.
    """
    inside = (largest >= scale * _REFIT_BELOW) & (largest <= scale * _REFIT_ABOVE)
    code = torch.where(inside, scale, scale_of(largest * (CODE_MAX / _REFITTED)))
    momentum = scale_of(momentum_reach)
    return _Scales(code, momentum, code.reciprocal(), momentum.reciprocal())


def _reach(gradient: Accumulated) -> Tensor:
    return gradient.values.to(torch.float32).abs().amax(dim=1, keepdim=True) * gradient.scale


class _Move(NamedTuple):
    """A step that is about to be taken, every factor ready."""

    gradient: Tensor  # [O, K], of scale `share`
    weight: QTensor  # scale [O, 1], decay included
    remainder: Tensor | None
    momentum: QTensor  # scale [O, 1], forgetting included
    share: Tensor  # [O, 1]: what the gradient adds to the momentum, in its scale
    row_rate: Tensor  # [O, 1]
    column_factor: Tensor  # [1, K]


def _move(
    move: _Move, per_code: Tensor, per_momentum: Tensor, randomness: Noise
) -> dict[str, Tensor | None]:
    """New momentum and new weights in one pass: rounded stochastically, and how large they are.

    Args:
        move: The step.
        per_code: Reciprocal of the scale that the new codes get, `[O, 1]`.
        per_momentum: Likewise of the momentum's.
        randomness: Of the rounding.
    """
    momentum = move.momentum.dequantize() + move.gradient * move.share
    held = move.weight.codes.to(torch.float32)
    if move.remainder is not None:
        held = held + move.remainder * (1.0 / _FINE)
    w = held * move.weight.scale - momentum * move.row_rate * move.column_factor
    u1, u2 = draws(randomness.words())
    fine = 1 if move.remainder is None else _FINE
    limit = float(CODE_MAX * fine)
    steps = (w * (per_code * fine) + u1).floor().clamp(-limit, limit)
    codes, rest = _split(steps.to(torch.int32), fine)
    momentum_codes = (momentum * per_momentum + u2).floor().clamp(-CODE_MAX, CODE_MAX)
    return {
        "codes": codes,
        "remainder": rest,
        "momentum": momentum_codes.to(torch.int8),
        "largest": w.abs().amax(dim=1, keepdim=True),
        "momentum_largest": momentum.abs().amax(dim=1, keepdim=True),
    }


def _split(steps: Tensor, fine: int) -> tuple[Tensor, Tensor | None]:
    """Nearest code, and what is left in `fine` parts of one: int8 each."""
    if fine == 1:
        return steps.to(torch.int8), None
    codes = (steps + _FINE // 2) >> 8
    return codes.to(torch.int8), (steps - (codes << 8)).to(torch.int8)
