"""Prediction with torch on the CPU, in the integers that were learned.

See engines/predict_network.py for what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.base import PredictEngine, Prediction, Weights
from engines.fusion import Fusion
from engines.precision import PRECISIONS
from engines.predict_network import PredictNetwork
from engines.recipe import Recipe
from engines.rule import open_rule
from models import ModelSpec


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
        arrays = {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
        self._network: PredictNetwork | None = PredictNetwork(
            weights.spec,
            arrays,
            open_rule(weights.spec, _serving_recipe(arrays)),
            PRECISIONS["int8"],
            Fusion("eager", "compiling takes longer than most versions serve"),
        )

    @torch.no_grad()
    def predict(self, x: NDArray[np.float32]) -> Prediction:
        """See `PredictEngine.predict`."""
        if self._network is None:
            raise RuntimeError("the engine is closed")
        goodness = self._network.goodness(as_rows(x, self._spec))
        if self._classes == 0:
            index = np.full(len(x), -1, dtype=np.int64)
        else:
            index = goodness[:, : self._classes].argmax(dim=1).numpy()
        return Prediction(index, goodness.numpy())

    def close(self) -> None:
        """See `PredictEngine.close`."""
        self._network = None


def _serving_recipe(arrays: Mapping[str, Tensor]) -> Recipe:
    """What of a recipe answers depend on."""
    if "input.label_value" not in arrays:
        return Recipe()
    return Recipe(label_value=arrays["input.label_value"].item())
