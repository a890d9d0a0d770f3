"""The training methods under comparison, behind one small interface.

| name | what it is |
| --- | --- |
| `bp-fp32` | float32 back-propagation: the hidden layers, then a linear layer; cross-entropy |
| `ff-int8` | this project: class-goodness Forward-Forward, INT8 products, exact look-ahead |

Both get the same standardised input `clip((x - mean) / std, -4, 4)` and torch's fused Adam.

`ff-int8` answers the test samples through `export()` and the engine that the daemon would open, so
its accuracy is that of the integers that would be served, not of the trainer's own forward pass.

**What the figures may be used for.** The lambda schedule 0.2 -> 1.6 and alpha = 5 come from
prototype runs that looked at the MNIST test accuracy. MNIST figures are therefore a feasibility
reproduction, not an independent result, and no further setting is chosen on test data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import engines
from benchmarks.samples import Samples
from benchmarks.trial import Trial
from engines.standardize import fit_standardization, standardize
from models import ModelSpec

# Rows asked about at once, so that judging needs little memory beside training.
_JUDGED_ROWS = 1000


class Method(ABC):
    """A network that is fitted step by step and asked how well it does."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Numbers that are learned: weights and biases."""

    @abstractmethod
    def start_epoch(self, epoch: int) -> None:
        """Take the settings of `epoch`, counted from 0."""

    @abstractmethod
    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Learn from one batch.

        Args:
            x: float32 `[batch, *input_shape]`; not changed.
            labels: int64 `[batch]`, class indices.

        Returns:
            Loss before the update, mean over the batch.
        """

    @abstractmethod
    def accuracy(self, samples: Samples) -> float:
        """Share of samples answered rightly, a fraction."""


class BackpropFp32(Method):
    """Back-propagation in float32 through torch's autograd: the baseline.

    The hidden layers have the shape and count of the Forward-Forward units; a linear layer to the
    classes comes after them. Weights start as torch starts a linear layer.

    Args:
        trial: Seed and schedule.
        spec: Shape of the network.
        train: All training samples, for the standardisation.
    """

    def __init__(self, trial: Trial, spec: ModelSpec, train: Samples) -> None:
        self._trial = trial
        self._mean, self._std = fit_standardization(torch.from_numpy(train.x))
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial.seed)
            for inputs, outputs in spec.unit_sizes:
                layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers.append(nn.Linear(spec.hidden[-1], spec.max_classes))
        self._network = nn.Sequential(*layers)
        self._adam = torch.optim.Adam(
            self._network.parameters(), lr=trial.learning_rate, fused=True
        )

    @property
    def parameters(self) -> int:
        """See `Method.parameters`."""
        return sum(tensor.numel() for tensor in self._network.parameters())

    def start_epoch(self, epoch: int) -> None:
        """See `Method.start_epoch`."""
        self._adam.param_groups[0]["lr"] = self._trial.learning_rate_at(epoch)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """See `Method.step`."""
        logits = self._network(self._rows(x))  # [batch, features] -> [batch, classes]
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        # Dropped at once: gradients that outlive the step would count against the baseline.
        self._adam.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def accuracy(self, samples: Samples) -> float:
        """See `Method.accuracy`."""
        return _share_right(lambda x: self._network(self._rows(x)).argmax(dim=1).numpy(), samples)

    def _rows(self, x: NDArray[np.float32]) -> Tensor:
        return standardize(torch.from_numpy(x).flatten(start_dim=1), self._mean, self._std)


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

    def start_epoch(self, epoch: int) -> None:
        """See `Method.start_epoch`."""
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
            return _share_right(lambda x: serving.predict(x).class_index, samples)


METHODS: dict[str, Callable[[Trial, ModelSpec, Samples], Method]] = {
    "bp-fp32": BackpropFp32,
    "ff-int8": ForwardForwardInt8,
}


def _share_right(predict: Callable[[NDArray[np.float32]], NDArray[np.int64]], s: Samples) -> float:
    starts = range(0, len(s), _JUDGED_ROWS)
    slices = [slice(start, start + _JUDGED_ROWS) for start in starts]
    right = sum(int((predict(s.x[rows]) == s.labels[rows]).sum()) for rows in slices)
    return right / len(s)
