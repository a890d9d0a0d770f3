"""Choose an engine by name, or the first in order of preference that opens.

Every refusal is kept with its reason, and the choice says why it was made: nothing falls back in
silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from engines.base import PredictEngine, TrainEngine, Weights
from engines.finding import Finding
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


def probe_predict_engines(
    weights: Weights, agrees: Callable[[Weights, PredictEngine], bool]
) -> list[Finding]:
    """Open every engine there is and have it answer, in order of preference.

    Args:
        weights: What to open them on.
        agrees: Whether an engine computes what the weights' canary says.

    Returns:
        A finding an engine: it answers rightly, is not to be had here, or does not work.
    """
    findings = []
    for candidate, load in _PREDICT_ENGINES.items():
        name = f"engine {candidate}"
        try:
            with load()(weights) as engine:
                right = agrees(weights, engine)
        except (ImportError, EngineUnavailableError) as error:
            findings.append(Finding(name, "SKIP", str(error)))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the finding
            findings.append(Finding(name, "FAIL", f"{type(error).__name__}: {error}"))
        else:
            found = "answers the canary batch as the learner does"
            wrong = "answers the canary batch otherwise than the learner: it must not serve"
            findings.append(Finding(name, *(("PASS", found) if right else ("FAIL", wrong))))
    return findings


def probe_machine(*, board: bool) -> list[Finding]:
    """What torch makes of this machine: integer products, their speed, fusion, the GPU.

    Args:
        board: Whether this is a Jetson, where a GPU is wanted.
    """
    from engines import probe

    return [
        probe.integer_products(),
        probe.integer_speed(),
        probe.fusion(),
        *probe.cuda(board=board),
    ]


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
