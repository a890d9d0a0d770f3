"""Numeric execution: Forward-Forward learning in INT8, and prediction from what was learned."""

from engines.base import (
    PredictEngine,
    Prediction,
    StepReport,
    TrainEngine,
    Weights,
    WeightsError,
)
from engines.registry import EngineUnavailableError, open_predict_engine, open_train_engine

__all__ = [
    "EngineUnavailableError",
    "PredictEngine",
    "Prediction",
    "StepReport",
    "TrainEngine",
    "Weights",
    "WeightsError",
    "open_predict_engine",
    "open_train_engine",
]
