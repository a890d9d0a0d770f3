"""Choose an engine by name, or the first in order of preference that opens.

Every refusal is kept with its reason, and the choice says why it was made: nothing falls back in
silence.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engines.base import EngineUnavailableError, PredictEngine, TrainEngine, Weights
from engines.canary import canary_agrees
from engines.finding import Finding, Verdict
from engines.recipe import Recipe
from models import ModelSpec

if TYPE_CHECKING:
    from engines.device import Device

log = logging.getLogger(__name__)

AUTO = "auto"
TORCH = "torch"


@dataclasses.dataclass(frozen=True)
class Options:
    """What engines are opened with.

    Args:
        threads: CPU threads that an engine may compute with; None: as many as the process may.
        cache: Folder for what took long to build; None: nothing is kept.
        device: What torch computes on, one of `engines.device.DEVICE_NAMES`.
    """

    threads: int | None = None
    cache: Path | None = None
    device: str = "cpu"


class Loaded(NamedTuple):
    """An engine that opens.

    Args:
        open: Makes an engine for one version of the weights.
        where: What it computes on, and why.
        builds: How many versions it has had to build, where neither a plan nor a refit would do.
    """

    open: Callable[[Weights], PredictEngine]
    where: str
    builds: Callable[[], int] = lambda: 0


def _open_device(name: str, memory_ratio: float = 1.0) -> Device:
    from engines.device import DeviceUnavailableError, open_device

    try:
        return open_device(name, memory_ratio=memory_ratio)
    except DeviceUnavailableError as error:
        raise EngineUnavailableError(str(error)) from error


def _tensorrt(options: Options) -> Loaded:
    from engines.tensorrt_predict import TensorRTEngines

    engines = TensorRTEngines(options.cache)
    return Loaded(engines, "on the GPU", lambda: engines.builds)


def _torch(options: Options) -> Loaded:
    from engines.torch_predict import TorchPredictEngine

    if options.threads is not None:
        limit_threads(options.threads)
    opened = _open_device(options.device)
    open_engine = functools.partial(TorchPredictEngine, device=opened)
    return Loaded(open_engine, f"on {opened.name} ({opened.reason})")


# In order of preference.
_PREDICT_ENGINES: dict[str, Callable[[Options], Loaded]] = {"tensorrt": _tensorrt, TORCH: _torch}


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
        self._changing = threading.Lock()  # versions are opened by several threads
        self._next()

    @property
    def name(self) -> str:
        """Of the engine that answers."""
        return self._name

    @property
    def reason(self) -> str:
        """Why this one, with the refusals of those preferred to it."""
        return "; ".join([self._why, self._loaded.where, *self._refusals])

    def open(self, weights: Weights) -> PredictEngine:
        """An engine for one version of the weights.

        Raises:
            WeightsError: The weights must not serve.
            EngineUnavailableError: No engine can serve them; the one that answers stays.
            EngineFailedError: The engine can serve, but not now.
        """
        while True:
            loaded = self._loaded
            try:
                return loaded.open(weights)
            except EngineUnavailableError as error:
                with self._changing:
                    if loaded is self._loaded:
                        self._change(str(error))

    def _change(self, why: str) -> None:
        told = [*self._refusals]
        self._refusals.append(f"{self._name}: {why}")
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
                self._loaded = _PREDICT_ENGINES[name](self._options)
            except (ImportError, EngineUnavailableError) as error:
                self._refusals.append(f"{name}: {error}")
                continue
            self._name = name
            return
        raise EngineUnavailableError("no engine opened: " + "; ".join(self._refusals))


def open_predict_engine(
    name: str = AUTO,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Opened:
    """The engine that predictions are answered by.

    Args:
        name: An engine's name, or `auto` for the first that opens.
        threads: CPU threads that it may compute with; None: as many as the process may.
        cache: Folder for what took long to build; None: nothing is kept.
        device: What torch computes on, one of `engines.device.DEVICE_NAMES`.

    Raises:
        EngineUnavailableError: None opened.
    """
    options = Options(threads, cache, device)
    if name == AUTO:
        return Opened([*_PREDICT_ENGINES], options, "first in order that opened")
    if name not in _PREDICT_ENGINES:
        known = ", ".join([AUTO, *_PREDICT_ENGINES])
        raise EngineUnavailableError(f"engine {name!r} is unknown; known: {known}")
    return Opened([name], options, "asked for by name")


def probe_predict_engines(
    versions: tuple[Weights, Weights], *, wanted: str, board: bool
) -> list[Finding]:
    """Open every engine there is and have it answer for two versions, in order of preference.

    Args:
        versions: What to open them on: of one network, one after the other.
        wanted: The engine that is asked for by name, and so must open; or `auto`.
        board: Whether this is a Jetson, where every engine is to be had.

    Returns:
        A finding an engine: it answers rightly, is not to be had here, or does not work.
    """
    findings = []
    for candidate, load in _PREDICT_ENGINES.items():
        name = f"engine {candidate}"
        try:
            finding = _probe(name, load(Options(device=AUTO)), versions)
        except (ImportError, EngineUnavailableError) as error:
            lack: Verdict = "FAIL" if candidate == wanted else "WARN" if board else "SKIP"
            finding = Finding(name, lack, str(error))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the finding
            finding = Finding(name, "FAIL", f"{type(error).__name__}: {error}")
        findings.append(finding)
    return findings


def _probe(name: str, loaded: Loaded, versions: tuple[Weights, Weights]) -> Finding:
    for weights in versions:
        built, started = loaded.builds(), time.monotonic()
        with loaded.open(weights) as engine:
            seconds = time.monotonic() - started
            if not canary_agrees(weights, engine):
                wrong = "answers the canary batch otherwise than the learner: it must not serve"
                return Finding(name, "FAIL", wrong)
    found = f"answers the canary batch as the learner does; took another version in {seconds:.1g} s"
    if loaded.builds() > built:
        remedy = "by a build, not a refit: each swap will take so long, a large network minutes"
        return Finding(name, "WARN", f"{found} {remedy}")
    return Finding(name, "PASS", found)


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
    cache: Path | None = None,
) -> TrainEngine:
    """The engine that learns: torch, the only one that does.

    Args:
        spec: The network.
        seed: Draws the first weights and keys the rounding noise.
        recipe: How it learns; None: the default recipe.
        device: One of `engines.device.DEVICE_NAMES`.
        gpu_memory_ratio: Share of the GPU's memory that this process may take, in (0, 1].
        cache: Folder for compiled CUDA kernels; None: none are compiled.

    Raises:
        EngineUnavailableError: The device or the fusion was asked for by name and is not to be had.
    """
    from engines.fusion import FusionUnavailableError
    from engines.torch_train import TorchTrainEngine

    opened = _open_device(device, gpu_memory_ratio)
    open_kernels = None
    if opened.name == "cuda" and cache is not None:
        from engines.cuda_chains import open_chains

        open_kernels = functools.partial(open_chains, cache)
    try:
        return TorchTrainEngine(
            spec, seed=seed, recipe=recipe or Recipe(), device=opened, open_kernels=open_kernels
        )
    except FusionUnavailableError as error:
        raise EngineUnavailableError(str(error)) from error


def limit_threads(threads: int) -> None:
    """How many CPU threads torch may compute with in this process, all engines together."""
    import torch

    torch.set_num_threads(threads)
