"""Prediction with torch, in the integers that were learned.

See engines/predict_network.py for what is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from engines.base import EngineFailedError, PredictEngine, Prediction, Weights
from engines.device import HOST, Device, to_device, to_host
from engines.fusion import Fusion
from engines.latent import Latent, latent_shape
from engines.out_of_memory import is_out_of_memory
from engines.precision import PRECISIONS
from engines.predict_network import PredictNetwork, as_rows
from engines.recipe import Recipe
from engines.rule import open_rule


class TorchPredictEngine(PredictEngine):
    """See `PredictEngine`.

    Args:
        weights: Checked; the arrays are copied.
        device: Computes.

    Raises:
        WeightsError: The weights must not serve.
        EngineFailedError: Memory ran out, or the GPU failed.
    """

    def __init__(self, weights: Weights, device: Device = HOST) -> None:
        weights.check()
        self._spec = weights.spec
        self._classes = len(weights.classes)
        self._device = device.name
        with _faults_named():
            arrays = {n: to_device(np.array(a), device.name) for n, a in weights.arrays.items()}
            self._network: PredictNetwork | None = PredictNetwork(
                weights.spec,
                arrays,
                open_rule(weights.spec, _serving_recipe(weights.arrays)),
                PRECISIONS["int8"],
                Fusion("eager", "compiling takes longer than most versions serve"),
            )

    @torch.no_grad()
    def predict(self, x: NDArray[np.float32]) -> Prediction:
        """See `PredictEngine.predict`."""
        with _faults_named():
            goodness = self._opened().goodness(as_rows(x, self._spec, self._device)).cpu()
        if self._classes == 0:
            index = np.full(len(x), -1, dtype=np.int64)
        else:
            index = goodness[:, : self._classes].argmax(dim=1).numpy()
        return Prediction(index, goodness.numpy())

    @torch.no_grad()
    def latent(self, x: NDArray[np.float32], units: int) -> Latent:
        """See `PredictEngine.latent`."""
        latent_shape(self._spec, units)
        with _faults_named():
            rows = as_rows(x, self._spec, self._device)
            codes, scale, _ = self._opened().units.latent(rows, units)
            return Latent(to_host(codes), to_host(scale).copy())

    def _opened(self) -> PredictNetwork:
        if self._network is None:
            raise RuntimeError("the engine is closed")
        return self._network

    def close(self) -> None:
        """See `PredictEngine.close`."""
        self._network = None


@contextlib.contextmanager
def _faults_named() -> Iterator[None]:
    """Memory that ran out, and what a GPU did not do, as every engine tells it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) and "CUDA error" not in str(error):
            raise
        raise EngineFailedError(str(error)) from error


def _serving_recipe(arrays: Mapping[str, NDArray[np.generic]]) -> Recipe:
    """What of a recipe answers depend on."""
    if "input.label_value" not in arrays:
        return Recipe()
    return Recipe(label_value=float(arrays["input.label_value"]))
