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
from engines.latent import Latent
from engines.look_ahead import LookAhead
from engines.recipe import Optimizer, Recipe
from engines.registry import (
    Opened,
    limit_threads,
    open_predict_engine,
    open_train_engine,
)
from engines.weights_file import weights_digest, weights_from_bytes, weights_to_bytes

__all__ = [
    "EngineFailedError",
    "EngineUnavailableError",
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
    "Weights",
    "WeightsError",
    "canary_agrees",
    "limit_threads",
    "open_predict_engine",
    "open_train_engine",
    "weights_digest",
    "weights_from_bytes",
    "weights_to_bytes",
]
