"""Numeric execution: Forward-Forward learning in INT8, and prediction from what was learned."""

from engines.base import (
    EngineFailedError,
    EngineUnavailableError,
    Label,
    PredictEngine,
    Prediction,
    StepReport,
    TrainEngine,
    Weights,
    WeightsError,
)
from engines.canary import canary_agrees
from engines.finding import Finding, Verdict
from engines.latent import Latent
from engines.look_ahead import LookAhead
from engines.out_of_memory import is_out_of_memory, release_memory
from engines.recipe import Optimizer, Recipe
from engines.registry import (
    Opened,
    limit_threads,
    open_predict_engine,
    open_train_engine,
    probe_machine,
    probe_predict_engines,
)
from engines.weights_file import weights_digest, weights_from_bytes, weights_to_bytes

__all__ = [
    "EngineFailedError",
    "EngineUnavailableError",
    "Finding",
    "Label",
    "Latent",
    "LookAhead",
    "Opened",
    "Optimizer",
    "PredictEngine",
    "Prediction",
    "Recipe",
    "StepReport",
    "TrainEngine",
    "Verdict",
    "Weights",
    "WeightsError",
    "canary_agrees",
    "is_out_of_memory",
    "limit_threads",
    "open_predict_engine",
    "open_train_engine",
    "probe_machine",
    "probe_predict_engines",
    "release_memory",
    "weights_digest",
    "weights_from_bytes",
    "weights_to_bytes",
]
