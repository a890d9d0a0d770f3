"""The training methods under comparison, behind one small interface.

| name | what it is |
| --- | --- |
| `bp-fp32` | float32 back-propagation: the units, then a linear layer; cross-entropy |
| `bp-fp32-checkpoint` | the same, each unit's inside computed again on the way back |
| `bp-int8`, `bp-int8-codes`, `bp-int8-strong` | back-propagation with INT8 products, and ... |
| `bp-ui8`, `bp-dai8`, `bp-gdai8-like` | ... `benchmarks/backprop/__init__.py` tells them apart |
| `ff-int8` | this project: class-goodness Forward-Forward, INT8 products, exact look-ahead |

All get the same standardised input `clip((x - mean) / std, -4, 4)` and torch's fused AdamW.

`ff-int8` answers the test samples through `export()` and the engine that the daemon would open, so
its accuracy is that of the integers that would be served, not of the trainer's own forward pass.

**What the figures may be used for.** The lambda schedule 0.2 -> 1.6 and alpha = 5 come from
prototype runs that looked at the MNIST test accuracy. MNIST figures are therefore a feasibility
reproduction, not an independent result, and no further setting is chosen on test data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import engines
from benchmarks.backprop.method import BACKPROP_NAMES, Backprop
from benchmarks.method import Method, share_right
from benchmarks.samples import Samples
from benchmarks.trial import Trial
from models import ModelSpec


class ForwardForwardInt8(Method):
    """Class-goodness Forward-Forward in INT8: what the daemon's learner runs.

    Args:
        trial: Seed and schedule.
        spec: Shape of the network.
        train: All training samples, for the standardisation.
    """

    def __init__(self, trial: Trial, spec: ModelSpec, train: Samples) -> None:
        self._trial = trial
        self._spec = spec
        self._engine = engines.open_train_engine(spec, seed=trial.seed)
        self._engine.standardize_from(train.x)
        self._learning_rate = trial.learning_rate_at(0)
        self._look_ahead = trial.look_ahead_at(0)
        self._exports = 0

    @property
    def parameters(self) -> int:
        """See `Method.parameters`."""
        return sum(inputs * outputs + outputs for inputs, outputs in self._spec.unit_sizes)

    def start_step(self, epoch: float) -> None:
        """See `Method.start_step`."""
        self._learning_rate = self._trial.learning_rate_at(epoch)
        self._look_ahead = self._trial.look_ahead_at(epoch)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """See `Method.step`; the loss is the mean of the units' own."""
        report = self._engine.train_step(
            x, labels, learning_rate=self._learning_rate, look_ahead_weight=self._look_ahead
        )
        return float(np.mean(report.losses))

    def accuracy(self, samples: Samples) -> float:
        """See `Method.accuracy`; answered by the serving engine from the exported weights."""
        self._exports += 1
        weights = self._engine.export(
            classes=samples.classes, version=self._exports, parent=None, last_seq=0
        )
        with engines.open_predict_engine().open(weights) as serving:
            return share_right(lambda x: serving.predict(x).class_index, samples)


METHODS: dict[str, Callable[[Trial, ModelSpec, Samples], Method]] = {
    **dict.fromkeys(BACKPROP_NAMES, Backprop),
    "ff-int8": ForwardForwardInt8,
}
