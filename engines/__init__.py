"""Numeric execution: Forward-Forward learning in INT8, and prediction from what was learned."""

from engines.base import (
    EngineFailedError,
    EngineUnavailableError,
    Label,
    NonFiniteWeightsError,
    PredictEngine,
    Prediction,
    StepReport,
    TrainEngine,
    Weights,
    WeightsError,
)
from engines.canary import canary_agrees
from engines.finding import Finding, Verdict
from engines.health import OutOfRangeError, SaturatedError, check_health
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
    "NonFiniteWeightsError",
    "Opened",
    "Optimizer",
    "OutOfRangeError",
    "PredictEngine",
    "Prediction",
    "Recipe",
    "SaturatedError",
    "StepReport",
    "TrainEngine",
    "Verdict",
    "Weights",
    "WeightsError",
    "canary_agrees",
    "check_health",
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
