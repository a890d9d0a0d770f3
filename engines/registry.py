"""Choose an engine by name, or the first in order of preference that opens.

Every refusal is kept with its reason, and the choice says why it was made: nothing falls back in
silence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from engines.base import PredictEngine, TrainEngine, Weights
from engines.finding import Finding
from engines.recipe import Recipe
from models import ModelSpec

if TYPE_CHECKING:
    from engines.device import Device

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


class Loaded(NamedTuple):
    """An engine that opens.

    Args:
        open: As `Opened.open`.
        where: What it computes on, and why.
    """

    open: Callable[[Weights], PredictEngine]
    where: str


def _open_device(name: str, memory_ratio: float = 1.0) -> Device:
    from engines.device import DeviceUnavailableError, open_device

    try:
        return open_device(name, memory_ratio=memory_ratio)
    except DeviceUnavailableError as error:
        raise EngineUnavailableError(str(error)) from error


def _torch(device: str) -> Loaded:
    from engines.torch_predict import TorchPredictEngine

    opened = _open_device(device)
    open_engine = functools.partial(TorchPredictEngine, device=opened)
    return Loaded(open_engine, f"on {opened.name} ({opened.reason})")


# In order of preference; each is told the device that was asked for.
_PREDICT_ENGINES: dict[str, Callable[[str], Loaded]] = {"torch": _torch}


def open_predict_engine(name: str = AUTO, device: str = "cpu") -> Opened:
    """The engine that predictions are answered by.

    Args:
        name: An engine's name, or `auto` for the first that opens.
        device: One of `engines.device.DEVICE_NAMES`.

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
            loaded = load(device)
        except (ImportError, EngineUnavailableError) as error:
            refusals.append(f"{candidate}: {error}")
            continue
        why = "asked for by name" if name == candidate else "first in order that opened"
        return Opened(candidate, loaded.open, "; ".join([why, loaded.where, *refusals]))
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
            with load(AUTO).open(weights) as engine:
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


def open_train_engine(
    spec: ModelSpec,
    *,
    seed: int,
    recipe: Recipe | None = None,
    device: str = "cpu",
    gpu_memory_ratio: float = 1.0,
) -> TrainEngine:
    """The engine that learns: torch, the only one that does.

    Args:
        spec: The network.
        seed: Draws the first weights and keys the rounding noise.
        recipe: How it learns; None: the default recipe.
        device: One of `engines.device.DEVICE_NAMES`.
        gpu_memory_ratio: Share of the GPU's memory that this process may take, in (0, 1].

    Raises:
        EngineUnavailableError: The device was asked for by name and does not compute.
        FusionUnavailableError: The recipe asks for compiled chains, which cannot be had here.
    """
    from engines.torch_train import TorchTrainEngine

    opened = _open_device(device, gpu_memory_ratio)
    return TorchTrainEngine(spec, seed=seed, recipe=recipe or Recipe(), device=opened)


def limit_threads(threads: int) -> None:
    """How many CPU threads the engines of this process may compute with, together."""
    import torch

    torch.set_num_threads(threads)
