"""One FF-INT8 training step on torch: where units, goodness, look-ahead and optimizers meet.

    a_1, targets = what the rule makes of quantize(standardize(x)) and the labels (engines/rule.py)
    for each unit l:                            forward (engines/dense.py, engines/conv_units.py)
        a_{l+1} = unit l of a_l                 INT8 products, float32 chains, int8 codes kept
        g_l     = goodness of y_l (engines/heads.py);  L_l, dL_l/dg_l (engines/objective.py)
    look-ahead (engines/look_ahead.py) decides which error each unit is updated by:
        weight gradient and, where lambda > 0, input gradient: INT8 products
        a step of the unit's masters (engines/masters.py), new codes
    a step of all that is small and float32 (biases, norms, gates, heads)

Goodness and own errors are read from the kept codes, so that no float copy of an activity is
stored: what is learned from is what the next unit, and serving, will see.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.base import (
    CANARY_ROWS,
    Label,
    StepReport,
    TrainEngine,
    Weights,
    WeightsError,
)
from engines.feature import Feature
from engines.fusion import open_fusion
from engines.heads import Head
from engines.look_ahead import Chain
from engines.lower import lower
from engines.objective import Objective
from engines.precision import PRECISIONS, Precision
from engines.predict_network import PredictNetwork, channels_last, image_shape
from engines.recipe import Recipe
from engines.rounding import NoiseKey, uniform
from engines.rule import Batch, Draw, Rule, open_rule
from engines.serving_scale import ServingScale
from engines.standardize import fit_standardization, standardize
from engines.torch_predict import TorchPredictEngine, as_rows
from engines.unit import Kept, Step
from models import ModelSpec
from models.build import build_model
from models.units import DenseUnitSpec

# Keys the wrong labels' draws: no unit's rounding noise has this number.
_WRONG_LABELS = -1


class TorchTrainEngine(TrainEngine):
    """See `TrainEngine`.

    Args:
        spec: The network.
        seed: Draws the first weights and keys the rounding noise.
        recipe: How it learns.
    """

    def __init__(self, spec: ModelSpec, *, seed: int, recipe: Recipe) -> None:
        self._spec = spec
        self._seed = seed
        self._recipe = recipe
        self.fusion = open_fusion(recipe.fusion)
        self._precision = PRECISIONS[recipe.precision]
        self._rule = open_rule(spec, recipe)
        network = lower(
            spec,
            build_model(spec, seed),
            [*self._rule.heads],
            recipe,
            self._precision,
            self.fusion,
        )
        self._units, self._parameters, self._gradients = network
        self._heads = [
            {name: self._parameters.tensors[f"heads.{index}.{name}"] for name in first}
            for index, first in enumerate(head.first_parameters() for head in self._rule.heads)
        ]
        self._judge = self.fusion.fuse(_judge)
        self._own_error = self.fusion.fuse(_own_error)
        self._first_codes = self.fusion.fuse(_first_codes)
        self._image = image_shape(spec)
        self._input_scale = ServingScale()
        self._mean = torch.zeros(spec.features)
        self._std = torch.ones(spec.features)
        self._classes = 2  # class places in use, as far as labels have shown, and never fewer
        self._step = 0

    @property
    def description(self) -> str:
        """See `TrainEngine.description`."""
        recipe = self._recipe
        chains = f"chains {self.fusion.name} ({self.fusion.reason})"
        return f"torch, {recipe.precision}, masters {recipe.masters}, {chains}"

    @torch.no_grad()
    def standardize_from(self, x: NDArray[np.float32]) -> None:
        """See `TrainEngine.standardize_from`."""
        rows = as_rows(x, self._spec).view(len(x), *self._spec.input_shape)
        self._mean, self._std = fit_standardization(rows)

    @torch.no_grad()
    def train_step(
        self,
        x: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        learning_rate: float,
        look_ahead_weight: float,
    ) -> StepReport:
        """See `TrainEngine.train_step`."""
        rows = as_rows(x, self._spec)
        self._check_labels(labels, len(rows))
        batch = self._batch(rows, torch.from_numpy(labels))
        step = Step(self._seed, self._step, learning_rate)
        losses = self._learn(batch, step, look_ahead_weight)
        report = StepReport(tuple(losses))
        if report.finite:
            self._parameters.step(self._gradients, learning_rate)
            self._step += 1
        self._gradients.clear()
        return report

    def _batch(self, rows: Tensor, labels: Tensor) -> Batch:
        codes, scale = self._first_codes(
            self._precision, self._rule, rows, self._mean, self._std, self._image
        )
        self._classes = max(self._classes, int(labels.max()) + 1)
        key = NoiseKey(self._seed, self._step, _WRONG_LABELS)
        draw = Draw(self._classes, key, lambda: self._goodness(rows))
        batch = self._rule.batch(self._precision, Feature(codes, scale), labels, draw)
        self._input_scale.follow(scale)
        return batch

    def _goodness(self, rows: Tensor) -> Tensor | None:
        """Goodness of each class in use, as the network would serve; None before it has scales."""
        if self._step == 0:
            return None
        network = PredictNetwork(
            self._spec, self._serving_arrays(), self._rule, self._precision, self.fusion
        )
        return network.goodness(rows)[:, : self._classes]

    def _learn(self, batch: Batch, step: Step, look_ahead_weight: float) -> list[float]:
        """All units forward and backward; the losses, as far as they are finite."""
        grads: dict[int, Tensor] = {}

        def own_error(index: int) -> Tensor:
            head, parameters = self._rule.heads[index], self._heads[index]
            kept = self._units[index].kept
            return self._own_error(self._precision, head, grads.pop(index), kept, parameters)

        def backward(index: int, error: Tensor, *, update: bool, propagate: bool) -> Tensor | None:
            passed = self._units[index].backward(error, step, update=update, propagate=propagate)
            return None if passed is None else self._units[index - 1].error_at_activity(passed)

        def release(index: int) -> None:
            self._units[index].release()

        chain = Chain(len(self._units), own_error, backward, release)
        look_ahead = self._recipe.look_ahead.step(chain, look_ahead_weight)
        losses: list[float] = []
        a = batch.rows
        for index, unit in enumerate(self._units):
            a = unit.forward(a)
            loss, grads[index], learned = self._judge(
                self._precision,
                self._rule.heads[index],
                self._rule.objective,
                unit.kept,
                self._heads[index],
                batch.targets,
            )
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                return losses
            self._gradients |= {f"heads.{index}.{name}": grad for name, grad in learned.items()}
            look_ahead.after_forward(index)
        look_ahead.finish()
        return losses

    def _check_labels(self, labels: NDArray[np.int64], samples: int) -> None:
        if samples == 0 or labels.shape != (samples,) or labels.dtype != np.int64:
            raise ValueError(
                f"labels are {labels.dtype} {[*labels.shape]}, wanted int64 [{samples}], at least 1"
            )
        if labels.min() < 0 or labels.max() >= self._spec.max_classes:
            raise ValueError(
                f"labels lie in {labels.min()}..{labels.max()}, "
                f"wanted 0..{self._spec.max_classes - 1}"
            )

    def export(
        self, *, classes: tuple[Label, ...], version: int, parent: int | None, last_seq: int
    ) -> Weights:
        """See `TrainEngine.export`.

        Raises:
            WeightsError: The precision is fp32, or the network has diverged.
        """
        if self._precision.name != "int8":
            raise WeightsError("only int8 networks are exported; fp32 is their twin for tests")
        arrays = self._serving_arrays()
        arrays["canary.input"] = self._canary_input()
        arrays["canary.goodness"] = torch.zeros(CANARY_ROWS, self._spec.max_classes)
        copied = {name: tensor.numpy().copy() for name, tensor in arrays.items()}
        with TorchPredictEngine(Weights(self._spec, classes, copied, version)) as engine:
            canary = copied["canary.input"].reshape(CANARY_ROWS, *self._spec.input_shape)
            copied["canary.goodness"] = engine.predict(canary).goodness
        weights = Weights(self._spec, classes, copied, version, parent, last_seq)
        weights.check()
        return weights

    def _serving_arrays(self) -> dict[str, Tensor]:
        """What answers are computed from; not copied."""
        arrays = {"input.mean": self._mean, "input.std": self._std}
        for index, unit in enumerate(self._units):
            arrays |= {f"units.{index}.{name}": value for name, value in unit.export().items()}
        if not isinstance(self._spec.units[0], DenseUnitSpec):
            arrays["input.scale"] = self._input_scale.exported
        if self._spec.label_places:
            arrays["input.label_value"] = torch.tensor(self._recipe.label_value)
        return arrays | {f"head.{name}": value for name, value in self._heads[-1].items()}

    def _canary_input(self) -> Tensor:
        """Made up within two standard deviations: weights files travel, samples should not."""
        deviations = uniform(CANARY_ROWS, self._spec.features, NoiseKey(0, 0, 0)).mul_(4).sub_(2)
        return self._mean + self._std * deviations

    def state(self) -> dict[str, NDArray[np.generic]]:
        """See `TrainEngine.state`."""
        return {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """See `TrainEngine.load_state`."""
        own = self._tensors()
        if unknown := sorted(state.keys() ^ own.keys()):
            raise WeightsError(f"training state is of another model: {', '.join(unknown)}")
        for name, tensor in own.items():
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.numpy().dtype):
                raise WeightsError(f"training state is of another model: {name!r}")
        given = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        self._mean.copy_(given["input.mean"])
        self._std.copy_(given["input.std"])
        self._input_scale.load(given["input.scale"])
        for index, unit in enumerate(self._units):
            unit.load_state({name: given[f"units.{index}.{name}"] for name in unit.state()})
        parameters = self._parameters.state()
        self._parameters.load_state({name: given[f"parameters.{name}"] for name in parameters})
        self._step = int(given["step"])
        self._classes = int(given["classes"])

    def _tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on; not copied."""
        tensors = {
            "input.mean": self._mean,
            "input.std": self._std,
            "input.scale": self._input_scale.value,
            "step": torch.tensor(self._step),
            "classes": torch.tensor(self._classes),
        }
        for index, unit in enumerate(self._units):
            tensors |= {f"units.{index}.{name}": value for name, value in unit.state().items()}
        parameters = self._parameters.state()
        return tensors | {f"parameters.{name}": value for name, value in parameters.items()}


def _first_codes(
    precision: Precision,
    rule: Rule,
    rows: Tensor,
    mean: Tensor,
    std: Tensor,
    image: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor]:
    x = rule.prepare(channels_last(standardize(rows, mean, std), image))
    scale = precision.scale(rule.absmax(x))
    return precision.quantize(x, scale), scale


def _judge(
    precision: Precision,
    head: Head,
    objective: Objective,
    kept: Kept,
    parameters: Mapping[str, Tensor],
    targets: Tensor,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The unit's loss, its gradient at the goodness, and the head's gradients."""
    activity = kept.activity(precision)
    loss, grad = objective.loss(head.goodness(activity, parameters), targets)
    return loss, grad, head.grad_parameters(grad, activity)


def _own_error(
    precision: Precision,
    head: Head,
    grad_goodness: Tensor,
    kept: Kept,
    parameters: Mapping[str, Tensor],
) -> Tensor:
    return head.grad_activity(grad_goodness, kept.activity(precision), parameters)
