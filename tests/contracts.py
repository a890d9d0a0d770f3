"""Engines under contract, and small networks for them to learn and serve."""

from __future__ import annotations

import numpy as np

from engines import (
    LookAhead,
    Optimizer,
    PredictEngine,
    Recipe,
    Weights,
    open_predict_engine,
    open_train_engine,
)
from engines.device import open_device
from models import ModelSpec
from tests.fake_tensorrt import FakeDriver, Rig

SPEC = ModelSpec("mlp", (6,), 4, (24, 20, 17))
CLASSES = ("zero", "one", "two", "three")
STEP = {"learning_rate": 5e-3, "look_ahead_weight": 0.5}

RECIPES = {
    "int8": Recipe(),
    "int8-sgd": Recipe(optimizer=Optimizer("sgd", weight_decay=0.1)),
    "int8-int16-masters": Recipe(masters="int16"),
    "int8-int8-masters": Recipe(masters="int8", look_ahead=LookAhead("discounted", window=1)),
    "fp32": Recipe(precision="fp32"),
}
# Where there is a GPU, it is under contract too; tests/test_cuda.py says why where there is none.
DEVICES = dict.fromkeys(["cpu", open_device().name])
# Another engine is one more line: every contract then holds for it too.
TRAIN_ENGINES = {
    f"torch-{device}-{name}": lambda spec, seed=1, recipe=recipe, device=device: open_train_engine(
        spec, seed=seed, recipe=recipe, device=device
    )
    for device in DEVICES
    for name, recipe in RECIPES.items()
}


def _open_tensorrt(weights: Weights) -> PredictEngine:
    return Rig("10.3", FakeDriver()).engines()(weights)


# On the CPU only: these contracts are of bits, which a GPU's sums keep for the same batch alone.
PREDICT_ENGINES = {
    "torch": lambda weights: open_predict_engine("torch").open(weights),
    "tensorrt": _open_tensorrt,
}


def samples(rows: int, seed: int = 0):
    """Four clouds, a sensor's offset and unit on each feature."""
    rng = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(99).normal(size=(4, 6))
    labels = rng.integers(0, 4, rows)
    x = (centres[labels] + rng.normal(size=(rows, 6))) * [1, 10, 0.1, 1, 5, 2] + 7
    return x.astype(np.float32), labels


def learned(engine, steps: int = 4):
    engine.standardize_from(samples(64)[0])
    for step in range(steps):
        engine.train_step(*samples(24, seed=step), **STEP)
    return engine


def exported(classes=CLASSES, steps: int = 4) -> Weights:
    learner = learned(open_train_engine(SPEC, seed=1), steps)
    return learner.export(classes=classes, version=3, parent=2, last_seq=77)


def bits(arrays) -> dict[str, tuple]:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
