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

import torch
from torch import Tensor

from engines.code_step import (
    COLUMN_STEPS,
    adam_step,
    first_codes,
    refreshed_columns,
    sgd_step,
)
from engines.fusion import Fusion
from engines.int8 import QTensor, Scratch
from engines.optim import BETA1, BETA2, FloatMasters
from engines.precision import Accumulated, Precision
from engines.recipe import Optimizer
from engines.rounding import NoiseKey, noise


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
        self._requantize = fusion.fuse(requantize)
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
        self._optimizer = optimizer
        self._state = first_codes(initial, remainder=remainder)
        codes, scale = self._state["codes"], self._state["scale"]
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
        self._refresh = fusion.fuse(refreshed_columns) if adam else None
        self._step = fusion.fuse(adam_step if adam else sgd_step)

    @property
    def weight(self) -> QTensor:
        """See `Masters.weight`."""
        return QTensor(self._state["codes"], self._state["scale"])

    def step(self, gradient: Accumulated, key: NoiseKey, learning_rate: float) -> None:
        """See `Masters.step`."""
        state = dict(self._state)
        number = self._steps = self._steps + 1
        if self._refresh is not None and number % COLUMN_STEPS == 1:
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


def requantize(precision: Precision, master: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales, one a row, of a float32 master."""
    scale = precision.scale(master.abs().amax(dim=1, keepdim=True))
    return precision.quantize(master, scale), scale
