"""Prediction with torch on the CPU, in the integers that were learned.

Every unit's input is quantized with the fixed scale that training recorded, not with the absmax of
the batch at hand, so that an answer does not depend on which requests it shares a batch with.

The answer: each unit but the first gives a goodness per class, their mean decides. (Adding
log-softmaxes, as the recorded runs did, gives the same argmax: each unit's logsumexp is the same
for all classes.) The first unit sees only raw input and is the weakest judge; it decides only when
it is alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.base import PredictEngine, Prediction, Weights
from engines.feature import Feature
from engines.fusion import Fusion
from engines.precision import PRECISIONS
from engines.predict_units import open_predict_unit
from engines.recipe import Recipe
from engines.rule import open_rule
from engines.standardize import standardize
from models import ModelSpec
from models.units import DenseUnitSpec


def as_rows(x: NDArray[np.float32], spec: ModelSpec) -> Tensor:
    """A batch `[batch, *input_shape]` as float32 `[batch, features]`, copied.

    Raises:
        ValueError: The shape is not the model's, or a value is not finite.
    """
    if x.shape[1:] != spec.input_shape:
        raise ValueError(
            f"input has shape {[*x.shape[1:]]} per sample, the model needs {[*spec.input_shape]}"
        )
    if not np.isfinite(x).all():
        raise ValueError("input holds a value that is not finite")
    return torch.from_numpy(np.array(x, dtype=np.float32).reshape(len(x), spec.features))


def image_shape(spec: ModelSpec) -> tuple[int, ...] | None:
    """`[channels, height, width]` of a network of convolutions; None for dense units."""
    return None if isinstance(spec.units[0], DenseUnitSpec) else spec.input_shape


def channels_last(rows: Tensor, image: tuple[int, ...] | None) -> Tensor:
    """What the first unit gets: `[batch, features]` as they are, or as `[batch, H, W, C]`."""
    if image is None:
        return rows
    return rows.view(len(rows), *image).permute(0, 2, 3, 1).contiguous()


class TorchPredictEngine(PredictEngine):
    """See `PredictEngine`.

    Args:
        weights: Checked; the arrays are copied.

    Raises:
        WeightsError: The weights must not serve.
    """

    def __init__(self, weights: Weights) -> None:
        weights.check()
        self._spec = weights.spec
        self._classes = len(weights.classes)
        self._rule = open_rule(weights.spec, Recipe())
        self._precision = PRECISIONS["int8"]
        tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
        self._mean, self._std = tensors["input.mean"], tensors["input.std"]
        self._input_scale = tensors.get("input.scale")
        self._head = {
            name: tensors[f"head.{name}"] for name in self._rule.heads[-1].first_parameters()
        }
        eager = Fusion("eager", "compiling takes longer than most versions serve")
        self._units = [
            open_predict_unit(unit, _named(tensors, f"units.{index}."), self._precision, eager)
            for index, unit in enumerate(weights.spec.units)
        ]

    @torch.no_grad()
    def predict(self, x: NDArray[np.float32]) -> Prediction:
        """See `PredictEngine.predict`."""
        goodness = self._goodness(as_rows(x, self._spec))
        if self._classes == 0:
            index = np.full(len(x), -1, dtype=np.int64)
        else:
            index = goodness[:, : self._classes].argmax(dim=1).numpy()
        return Prediction(index, goodness.numpy())

    def _goodness(self, rows: Tensor) -> Tensor:
        x: Tensor | Feature = channels_last(
            standardize(rows, self._mean, self._std), image_shape(self._spec)
        )
        if self._input_scale is not None:
            assert isinstance(x, Tensor)  # noqa: S101 - narrows the type
            x = Feature(self._precision.quantize(x, self._input_scale), self._input_scale)
        judged: list[Tensor] = []
        last = len(self._units) - 1
        for index, unit in enumerate(self._units):
            activity, x = unit.forward(x)
            if not self._head or index == last:
                judged.append(self._rule.heads[index].goodness(activity, self._head))
        return torch.stack(judged[1:] or judged).mean(dim=0)

    def close(self) -> None:
        """See `PredictEngine.close`."""
        self._units = []


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
