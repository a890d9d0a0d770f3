"""Choose an engine by name, or the first in order of preference that opens.

Every refusal is kept with its reason, and the choice says why it was made: nothing falls back in
silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from engines.base import PredictEngine, TrainEngine, Weights
from engines.recipe import Recipe
from models import ModelSpec

AUTO = "auto"


class EngineUnavailableError(RuntimeError):
    """No engine of the name, or none at all, opens here; the message lists every refusal."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """An engine and how it came to be chosen.

    Args:
        name: Its name.
        open: Makes an engine for one version of the weights.
        reason: Why this one, with the refusals of those preferred to it.
    """

    name: str
    open: Callable[[Weights], PredictEngine]
    reason: str


def _torch() -> Callable[[Weights], PredictEngine]:
    from engines.torch_predict import TorchPredictEngine

    return TorchPredictEngine


# In order of preference.
_PREDICT_ENGINES: dict[str, Callable[[], Callable[[Weights], PredictEngine]]] = {"torch": _torch}


def open_predict_engine(name: str = AUTO) -> Opened:
    """The engine that predictions are answered by.

    Args:
        name: An engine's name, or `auto` for the first that opens.

    Raises:
        EngineUnavailableError: None opened.
    """
    if name != AUTO and name not in _PREDICT_ENGINES:
        known = ", ".join([AUTO, *_PREDICT_ENGINES])
        raise EngineUnavailableError(f"engine {name!r} is unknown; known: {known}")
    refusals: list[str] = []
    for candidate, load in _PREDICT_ENGINES.items():
        if name not in (AUTO, candidate):
            continue
        try:
            factory = load()
        except ImportError as error:
            refusals.append(f"{candidate}: {error}")
            continue
        why = "asked for by name" if name == candidate else "first in order that opened"
        return Opened(candidate, factory, "; ".join([why, *refusals]))
    raise EngineUnavailableError("no engine opened: " + "; ".join(refusals))


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
    """How many CPU threads the engines of this process may compute with, together."""
    import torch

    torch.set_num_threads(threads)
