"""The training methods under comparison, behind one small interface.

| name | what it is |
| --- | --- |
| `bp-fp32` | float32 back-propagation: the units, then a linear layer; cross-entropy |
| `bp-fp32-checkpoint` | the same, each unit's inside computed again on the way back |
| `bp-int8`, `bp-int8-codes`, `bp-int8-strong` | back-propagation with INT8 products, and ... |
| `bp-ui8`, `bp-dai8`, `bp-gdai8-like` | ... `benchmarks/backprop/__init__.py` tells them apart |
| `ff-int8` | this project: class-goodness Forward-Forward, INT8 products, look-ahead |
| `ff-int8-two-pass` | the same engine with the paper's objective: a positive and a negative pass |

All get the same standardised input `clip((x - mean) / std, -4, 4)` and torch's fused AdamW; with
integer masters `ff-int8*` have that of `engines/masters.py` in its place.

`ff-int8*` answer the test samples through `export()` and the engine that the daemon would open, so
their accuracy is that of the integers that would be served, not of the trainer's own forward pass.

**What the figures may be used for.** The lambda schedule 0.2 -> 1.6 and alpha = 5 come from
prototype runs that looked at the MNIST test accuracy. MNIST figures are therefore a feasibility
reproduction, not an independent result, and no further setting is chosen on test data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import engines
from benchmarks.backprop.method import BACKPROP_NAMES, Backprop
from benchmarks.method import Method, share_right
from benchmarks.samples import Samples
from benchmarks.trial import TWO_PASS, LinearSpec, Trial, TrialError
from engines import Optimizer, Recipe, Weights, WeightsError
from engines.fusion import COMPILED, open_fusion
from engines.rule import open_rule
from models import ModelSpec


class ForwardForwardInt8(Method):
    """Forward-Forward in INT8, what the daemon's learner runs; the network says which objective.

    Args:
        trial: Seed and recipe.
        spec: Shape of the network.
        fitted: Samples for the standardisation, float32.

    Raises:
        TrialError: The network has no unit.
    """

    def __init__(self, trial: Trial, spec: ModelSpec | LinearSpec, fitted: Samples) -> None:
        if isinstance(spec, LinearSpec):
            raise TrialError(f"{trial.method} needs a hidden layer; see --hidden")
        self._trial = trial
        self._spec = spec
        fusion = open_fusion(trial.fusion).name
        self._recipe = Recipe(
            look_ahead=trial.look_ahead_rule,
            masters=trial.masters or ("int16" if fusion == COMPILED else "float32"),
            optimizer=Optimizer(trial.optimizer, trial.weight_decay),
            fusion=fusion,
            threshold=trial.threshold,
            label_value=trial.label_value,
            negatives=trial.negatives,
        )
        self._engine = engines.open_train_engine(spec, seed=trial.seed, recipe=self._recipe)
        self._engine.standardize_from(fitted.x)
        self._learning_rate = trial.learning_rate_at(0)
        self._look_ahead = trial.look_ahead_at(0)
        self._exports = 0

    @property
    def settings(self) -> dict[str, Any]:
        """See `Method.settings`."""
        return {
            "fusion": self._recipe.fusion,
            "masters": self._recipe.masters,
            "look_ahead": list(self._trial.look_ahead),
            "look_ahead_form": self._recipe.look_ahead.form,
            "window": self._recipe.look_ahead.window,
            **(self._two_passes if self._spec.label_places else {}),
        }

    @property
    def _two_passes(self) -> dict[str, Any]:
        recipe = self._recipe
        return {
            "threshold": recipe.threshold,
            "label_value": recipe.label_value,
            "negatives": recipe.negatives,
        }

    @property
    def parameters(self) -> int:
        """See `Method.parameters`; those of every unit's head count too."""
        heads = open_rule(self._spec, self._recipe).heads
        tensors = (tensor for head in heads for tensor in head.first_parameters().values())
        return self._spec.parameters + sum(tensor.numel() for tensor in tensors)

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
        """See `Method.accuracy`; answered by the serving engine from the exported weights.

        0 where those are refused, as a diverged network's are: nothing would be answered.
        """
        try:
            weights = self.export(samples.classes)
        except WeightsError:
            return 0.0
        with engines.open_predict_engine("torch").open(weights) as serving:
            return share_right(lambda x: serving.predict(x).class_index, samples)

    def export(self, classes: tuple[str, ...]) -> Weights:
        """The weights as they stand, under a version number of their own."""
        self._exports += 1
        return self._engine.export(classes=classes, version=self._exports, parent=None, last_seq=0)


METHODS: dict[str, Callable[[Trial, ModelSpec | LinearSpec, Samples], Method]] = {
    **dict.fromkeys(BACKPROP_NAMES, Backprop),
    "ff-int8": ForwardForwardInt8,
    TWO_PASS: ForwardForwardInt8,
}
