"""Choose an engine by name, or the first in order of preference that opens.

Every refusal is kept with its reason, and the choice says why it was made: nothing falls back in
silence.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from engines.base import EngineUnavailableError, PredictEngine, TrainEngine, Weights
from engines.recipe import Recipe
from models import ModelSpec

log = logging.getLogger(__name__)

AUTO = "auto"
TORCH = "torch"
Open = Callable[[Weights], PredictEngine]


@dataclasses.dataclass(frozen=True)
class Options:
    """What engines are opened with.

    Args:
        threads: CPU threads that an engine may compute with; None: as many as the process may.
        cache: Folder for what took long to build; None: nothing is kept.
    """

    threads: int | None = None
    cache: Path | None = None


def _tensorrt(options: Options) -> Open:
    from engines.tensorrt_predict import TensorRTEngines

    return TensorRTEngines(options.cache)


def _torch(options: Options) -> Open:
    from engines.torch_predict import TorchPredictEngine

    if options.threads is not None:
        limit_threads(options.threads)
    return TorchPredictEngine


# In order of preference.
_PREDICT_ENGINES: dict[str, Callable[[Options], Open]] = {"tensorrt": _tensorrt, TORCH: _torch}


class Opened:
    """The engine that answers, until it refuses a version; from then on the next that opens.

    Args:
        names: In order of preference.
        options: What they are opened with.
        why: They are asked in this order.

    Raises:
        EngineUnavailableError: None opened.
    """

    def __init__(self, names: list[str], options: Options, why: str) -> None:
        self._waiting = names
        self._options = options
        self._why = why
        self._refusals: list[str] = []
        self._next()

    @property
    def name(self) -> str:
        """Of the engine that answers."""
        return self._name

    @property
    def reason(self) -> str:
        """Why this one, with the refusals of those preferred to it."""
        return "; ".join([self._why, *self._refusals])

    def open(self, weights: Weights) -> PredictEngine:
        """An engine for one version of the weights.

        Raises:
            WeightsError: The weights must not serve.
            EngineUnavailableError: No engine can serve them; the one that answers stays.
            EngineFailedError: The engine can serve, but not now.
        """
        while True:
            try:
                return self._open(weights)
            except EngineUnavailableError as error:
                before, told = self._name, [*self._refusals]
                self._refusals.append(f"{before}: {error}")
                try:
                    self._next()
                except EngineUnavailableError:
                    self._refusals = told  # the engine stays, and may take the next version
                    raise
                log.error("engine changed", extra={"engine": self._name, "reason": self.reason})

    def _next(self) -> None:
        while self._waiting:
            name = self._waiting.pop(0)
            try:
                self._open = _PREDICT_ENGINES[name](self._options)
            except ImportError as error:
                self._refusals.append(f"{name}: {error}")
                continue
            self._name = name
            return
        raise EngineUnavailableError("no engine opened: " + "; ".join(self._refusals))


def open_predict_engine(
    name: str = AUTO, *, threads: int | None = None, cache: Path | None = None
) -> Opened:
    """The engine that predictions are answered by.

    Args:
        name: An engine's name, or `auto` for the first that opens.
        threads: CPU threads that it may compute with; None: as many as the process may.
        cache: Folder for what took long to build; None: nothing is kept.

    Raises:
        EngineUnavailableError: None opened.
    """
    options = Options(threads, cache)
    if name == AUTO:
        return Opened([*_PREDICT_ENGINES], options, "first in order that opened")
    if name not in _PREDICT_ENGINES:
        known = ", ".join([AUTO, *_PREDICT_ENGINES])
        raise EngineUnavailableError(f"engine {name!r} is unknown; known: {known}")
    return Opened([name], options, "asked for by name")


def open_train_engine(spec: ModelSpec, *, seed: int, recipe: Recipe | None = None) -> TrainEngine:
    """The engine that learns: torch, the only one that does.

    Args:
        spec: The network.
        seed: Draws the first weights and keys the rounding noise.
        recipe: How it learns; None: the default recipe.

    Raises:
        FusionUnavailableError: The recipe asks for compiled chains, which cannot be had here.
    """
    from engines.torch_train import TorchTrainEngine

    return TorchTrainEngine(spec, seed=seed, recipe=recipe or Recipe())


def limit_threads(threads: int) -> None:
    """How many CPU threads torch may compute with in this process, all engines together."""
    import torch

    torch.set_num_threads(threads)
