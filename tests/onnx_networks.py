"""Networks that have learned a little, their exports, and samples to ask both about."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnxruntime

from engines import LookAhead, Recipe, Weights, open_train_engine
from models import ModelSpec

CLASSES = 10
# Every network and objective; the MLP at full width, and with groups and widths that no two are
# alike. Maps end at 6x5 and 3x3, 4x4 and 2x2: pooled with windows that overlap, or not at all.
NETWORKS = {
    "mlp": ModelSpec("mlp", (784,), CLASSES, (1000, 1000, 1000)),
    "mlp-uneven": ModelSpec("mlp", (3, 13, 7), CLASSES, (83, 97, 71)),
    "mlp-ff": ModelSpec("mlp", (784,), CLASSES, (1000, 1000), objective="ff"),
    "resnet8": ModelSpec("resnet8", (3, 24, 20), CLASSES, width=0.5),
    "resnet8-ff": ModelSpec("resnet8", (3, 9, 8), CLASSES, width=0.5, objective="ff"),
    "resnet18": ModelSpec("resnet18", (3, 16, 16), CLASSES, width=0.125),
    "resnet18-ff": ModelSpec("resnet18", (1, 8, 8), CLASSES, width=0.125, objective="ff"),
    "mobilenet_v2": ModelSpec("mobilenet_v2", (3, 12, 12), CLASSES, width=0.1),
    "mobilenet_v2-ff": ModelSpec("mobilenet_v2", (1, 8, 8), CLASSES, width=0.1, objective="ff"),
    "efficientnet_b0": ModelSpec("efficientnet_b0", (3, 12, 12), CLASSES, width=0.1),
    "efficientnet_b0-ff": ModelSpec(
        "efficientnet_b0", (1, 8, 8), CLASSES, width=0.1, objective="ff"
    ),
}
STEPS = 24
BATCH = 24


@functools.cache
def _digits():
    """Images in 0..16, `[1797, 8, 8]`, and labels."""
    from sklearn.datasets import load_digits  # seconds, in every worker that collects

    digits = load_digits()
    return digits.images, digits.target


def samples(spec: ModelSpec, rows: int, seed: int):
    """Digits of any shape: brighter or darker, noisy, a colour each channel; and their labels."""
    rng, (images, labels) = np.random.default_rng(seed), _digits()
    channels, height, width = (1, 1, 1, *spec.input_shape)[-3:]
    if min(height, width) < 8:  # rows of features
        height = width = math.ceil(math.sqrt(spec.features))
        channels = 1
    chosen = rng.integers(0, len(images), rows)
    down, across = (np.arange(n) * 8 // n for n in (height, width))
    seen = images[chosen][:, down][:, :, across] * rng.uniform(0.5, 1.5, (rows, 1, 1))
    colour = rng.uniform(0.5, 1, (rows, channels, 1, 1))
    x = seen[:, None] * colour + rng.normal(size=(rows, channels, height, width))
    x = x.reshape(rows, -1)[:, : spec.features]
    return x.reshape(rows, *spec.input_shape).astype(np.float32), labels[chosen]


def questions(spec: ModelSpec, rows: int, seed: int):
    """Samples of which every eighth is nothing that a sensor should say, float32."""
    x, _ = samples(spec, rows, seed)
    rng = np.random.default_rng(seed)
    flat = x.reshape(rows, -1)
    for kind, row in enumerate(range(0, rows, 8)):
        if kind % 4 == 0:  # a constant
            flat[row] = rng.choice([0, -1, 1e-42, 16, 1e30, -1e30, 3e38])
        elif kind % 4 == 1:  # one value that is far out
            flat[row, rng.integers(spec.features)] = rng.choice([1e30, -1e30])
        elif kind % 4 == 2:  # all of them, either way
            flat[row] = rng.choice([-1e30, 1e30], spec.features)
        else:  # as loud as can be told apart
            flat[row] = rng.normal(size=spec.features) * 100
    return x


@functools.cache
def trained(name: str, seed: int = 4, steps: int = STEPS) -> Weights:
    """A network's weights after some steps on digits."""
    spec = NETWORKS[name]
    engine = open_train_engine(spec, seed=seed, recipe=Recipe(look_ahead=LookAhead("discounted")))
    engine.standardize_from(samples(spec, 256, seed)[0])
    for step in range(steps):
        x, labels = samples(spec, BATCH, 1000 * seed + step)
        engine.train_step(x, labels, learning_rate=4e-3, look_ahead_weight=0.5)
    return engine.export(classes=tuple(range(CLASSES)), version=1, parent=None, last_seq=0)


def session(model: bytes, *, optimized: bool) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, one thread, all of its graph optimizations or none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(model: bytes, x, *, optimized: bool):
    """What the model gives for a batch, in parts as a server would ask."""
    opened = session(model, optimized=optimized)
    return np.concatenate([opened.run(None, {"x": part})[0] for part in _parts(x)])


def _parts(x):
    return np.split(x, range(250, len(x), 250))
