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
from engines.dense import dense_activity
from engines.heads import GroupHead
from engines.int8 import QTensor
from engines.precision import Int8
from engines.standardize import standardize
from models import ModelSpec
from models.base import length_normalize


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
        self._head = GroupHead(weights.spec.max_classes)
        self._precision = Int8()
        tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
        self._mean, self._std = tensors["input.mean"], tensors["input.std"]
        self._units = [
            (
                QTensor(tensors[f"units.{u}.weight.codes"], tensors[f"units.{u}.weight.scale"]),
                tensors[f"units.{u}.bias"],
                tensors[f"units.{u}.input_scale"],
            )
            for u in range(len(weights.spec.unit_sizes))
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

    def _goodness(self, x: Tensor) -> Tensor:
        x = standardize(x, self._mean, self._std)
        judged: list[Tensor] = []
        for weight, bias, input_scale in self._units:
            a = self._precision.activation(x, input_scale)
            activity = dense_activity(self._precision, a, weight, bias)
            judged.append(self._head.goodness(activity, {}))
            x, _ = length_normalize(activity)
        return torch.stack(judged[1:] or judged).mean(dim=0)

    def close(self) -> None:
        """See `PredictEngine.close`."""
        self._units = []
