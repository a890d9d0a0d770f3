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

Scales follow the weights: after each step a row's largest magnitude has code 127. For INT8
mixed-precision training by torchao's glossary the kind is float32; with int8 or int16 it is
quantized training.
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
        scale = scale_of(initial.abs().amax(dim=1, keepdim=True))
        fine = _FINE if remainder else 1
        codes, rest = _split((initial / scale * fine).round().to(torch.int32), fine)
        self._optimizer = optimizer
        self._state = {"codes": codes, "scale": scale}
        if rest is not None:
            self._state["remainder"] = rest
        self._state |= {
            "momentum": torch.zeros((rows, columns), dtype=torch.int8),
            "momentum_scale": torch.ones((rows, 1)),
            "step": torch.zeros(()),
        }
        if optimizer.name == "adam":
            self._state |= {
                "row_moment": torch.zeros(rows, 1),
                "column_moment": torch.zeros(1, columns),
            }
        self._moments = fusion.fuse(_moments)
        self._moved_scales = fusion.fuse(_moved_scales)
        self._round_move = fusion.fuse(_round_move)

    @property
    def weight(self) -> QTensor:
        """See `Masters.weight`."""
        return QTensor(self._state["codes"], self._state["scale"])

    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """See `Masters.step`."""
        state = self._state
        step = float(state["step"].add_(1))
        if self._optimizer.name == "adam":
            row, column, row_factor, column_factor = self._moments(
                gradient,
                state["row_moment"],
                state["column_moment"],
                torch.tensor(1.0 - BETA2**step),
            )
            state["row_moment"], state["column_moment"] = row, column
            keep, take = BETA1, 1.0 - BETA1
            rate = learning_rate / (1.0 - BETA1**step)
        else:
            row_factor, column_factor = torch.ones(len(state["scale"]), 1), torch.ones(1, 1)
            keep, take, rate = MOMENTUM, 1.0, learning_rate
        decay = torch.tensor(1.0 - learning_rate * self._optimizer.weight_decay)
        move = _Move(
            gradient.values,
            QTensor(state["codes"], state["scale"] * decay),
            state.get("remainder"),
            QTensor(state["momentum"], state["momentum_scale"] * keep),
            gradient.scale * take,
            row_factor * rate,
            column_factor,
        )
        state["momentum_scale"], state["scale"], per_momentum, per_code = self._moved_scales(move)
        rows, columns = gradient.values.shape
        rounded = self._round_move(move, per_momentum, per_code, noise(rows, columns, key))
        state |= {name: value for name, value in rounded.items() if value is not None}

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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factored second moment and what it divides by, as a factor per row and one per column."""
    square = gradient.dequantize().square()
    row = BETA2 * row + (1.0 - BETA2) * square.mean(dim=1, keepdim=True)
    column = BETA2 * column + (1.0 - BETA2) * square.mean(dim=0, keepdim=True)
    # 1 / (sqrt(R_i C_j / mean(R) / correction) + eps), the eps put on the column's root.
    share = row / row.mean().clamp_min(1e-30)
    root = (column / correction).sqrt()
    return row, column, (share + 1e-12).rsqrt(), (root + EPSILON).reciprocal()


class _Move(NamedTuple):
    """A step that is about to be taken, every factor ready: `moved` is computed twice from it."""

    gradient: Tensor  # [O, K], of scale `share`
    weight: QTensor  # scale [O, 1], decay included
    remainder: Tensor | None
    momentum: QTensor  # scale [O, 1], forgetting included
    share: Tensor  # [O, 1]: what the gradient adds to the momentum, in its scale
    row_rate: Tensor  # [O, 1]
    column_factor: Tensor  # [1, K]

    def moved(self) -> tuple[Tensor, Tensor]:
        """New momentum and new weights, float32 `[O, K]`."""
        momentum = self.momentum.dequantize() + self.gradient * self.share
        held = self.weight.codes.to(torch.float32)
        if self.remainder is not None:
            held = held + self.remainder * (1.0 / _FINE)
        return momentum, held * self.weight.scale - momentum * self.row_rate * self.column_factor


def _moved_scales(move: _Move) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scales, `[O, 1]`, of the new momentum and of the new weights' codes, and their reciprocals.

    A pass of its own, so that the rounding pass finds its factors ready in memory.
    """
    momentum, weight = map(_row_scale, move.moved())
    return momentum, weight, momentum.reciprocal(), weight.reciprocal()


def _row_scale(x: Tensor) -> Tensor:
    return scale_of(x.abs().amax(dim=1, keepdim=True))


def _round_move(
    move: _Move, per_momentum: Tensor, per_code: Tensor, randomness: Noise
) -> dict[str, Tensor | None]:
    """Codes of both, rounded stochastically; `per_*` are reciprocals of their scales."""
    momentum, w = move.moved()
    u1, u2 = draws(randomness.words())
    fine = 1 if move.remainder is None else _FINE
    limit = float(CODE_MAX * fine)
    steps = (w * (per_code * fine) + u1).floor().clamp(-limit, limit)
    codes, rest = _split(steps.to(torch.int32), fine)
    momentum_codes = (momentum * per_momentum + u2).floor().clamp(-CODE_MAX, CODE_MAX)
    return {"codes": codes, "remainder": rest, "momentum": momentum_codes.to(torch.int8)}


def _split(steps: Tensor, fine: int) -> tuple[Tensor, Tensor | None]:
    """Nearest code, and what is left in `fine` parts of one: int8 each."""
    if fine == 1:
        return steps.to(torch.int8), None
    codes = (steps + _FINE // 2) >> 8
    return codes.to(torch.int8), (steps - (codes << 8)).to(torch.int8)
