"""One FF-INT8 training step on torch: where units, goodness, look-ahead and optimizers meet.

    a_1, targets = what the rule makes of quantize(standardize(x)) and the labels (engines/rule.py)
    (or a_{k+1} = latent behind k frozen units, engines/prefix.py; the other units as below)
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
    PredictEngine,
    StepReport,
    TrainEngine,
    Weights,
    WeightsError,
)
from engines.device import HOST, Device, to_device, to_host
from engines.feature import Feature
from engines.fusion import OpenKernels, open_fusion
from engines.int8 import slow_products
from engines.latent import Latent
from engines.local_unit import LocalUnit
from engines.look_ahead import Chain
from engines.lower import lower
from engines.precision import PRECISIONS, Precision, Terms, copied
from engines.predict_network import PredictNetwork, as_rows, channels_last, image_shape
from engines.prefix import FrozenPrefix, frozen_units
from engines.recipe import Recipe
from engines.rounding import NoiseKey, uniform
from engines.rule import Batch, Draw, Rule, open_rule
from engines.serving_scale import ServingScale
from engines.standardize import fit_standardization, standardize
from engines.targets import check_targets
from engines.torch_predict import TorchPredictEngine
from engines.unit import Step
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
        device: Where.
        open_kernels: See `engines.fusion.open_fusion`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        seed: int,
        recipe: Recipe,
        device: Device = HOST,
        open_kernels: OpenKernels | None = None,
    ) -> None:
        self._spec = spec
        self._seed = seed
        self._recipe = recipe
        self._device = device
        self.fusion = open_fusion(recipe.fusion, device.name, open_kernels)
        self._precision = PRECISIONS[recipe.precision]
        self._rule = open_rule(spec, recipe)
        network = lower(
            spec,
            build_model(spec, seed),
            [*self._rule.heads],
            recipe,
            self._precision,
            self.fusion,
            device.name,
        )
        units, self._parameters, self._gradients = network
        # Those that learn: behind the frozen prefix, where there is one.
        self._units = [
            LocalUnit(
                index,
                unit,
                head,
                self._parameters.tensors,
                self._gradients,
                self._rule.objective,
                self._precision,
                self.fusion,
            )
            for index, (unit, head) in enumerate(zip(units, self._rule.heads, strict=True))
        ]
        self._prefix: FrozenPrefix | None = None
        self._first_codes = self.fusion.fuse(_first_codes)
        self._image = image_shape(spec)
        self._input_scale = ServingScale(device.name)
        self._mean = torch.zeros(spec.features, device=device.name)
        self._std = torch.ones_like(self._mean)
        self._classes = 2  # class places in use, as far as labels have shown, and never fewer
        self._step = 0

    @property
    def description(self) -> str:
        """See `TrainEngine.description`."""
        recipe, precision = self._recipe, self._recipe.precision
        on_cpu = self._device.name == "cpu"
        slow = slow_products() if precision == "int8" and on_cpu else None
        products = f"{precision} ({slow})" if slow else precision
        chains = f"chains {self.fusion.name} ({self.fusion.reason})"
        frozen = "" if self._prefix is None else f", {self._prefix.units} units frozen"
        where = f"torch on {self._device.name} ({self._device.reason})"
        return f"{where}, {products}, masters {recipe.masters}, {chains}{frozen}"

    @torch.no_grad()
    def standardize_from(
        self, x: NDArray[np.float32], features: NDArray[np.bool_] | None = None
    ) -> None:
        """See `TrainEngine.standardize_from`."""
        if self._prefix is not None:
            raise RuntimeError("the first units are frozen, with the input as they have it")
        # On the CPU, as the first weights are, so that every device starts from the same bits.
        rows = as_rows(x, self._spec, HOST.name).view(len(x), *self._spec.input_shape)
        mean, std = (t.to(self._device.name) for t in fit_standardization(rows))
        if features is not None:
            mask = features.repeat(self._spec.features // len(features))
            each = torch.from_numpy(mask).to(self._device.name)
            mean, std = torch.where(each, mean, self._mean), torch.where(each, std, self._std)
        self._mean, self._std = mean, std

    @torch.no_grad()
    def freeze(self, units: int, serving: PredictEngine | None = None) -> None:
        """See `TrainEngine.freeze`."""
        if self._precision.name != "int8":
            raise ValueError(
                "the float twin has no int8 output to keep, and no weights that could serve; "
                "a prefix is frozen under precision 'int8'"
            )
        prefix = FrozenPrefix(self._spec, units, self._serving_arrays(), serving, self.fusion)
        if self._prefix is not None and units < self._prefix.units:
            raise ValueError(
                f"{self._prefix.units} units are frozen and cannot learn again, wanted {units}: "
                "what moved them is gone"
            )
        self._prefix = prefix
        self._units = [local for local in self._units if local.index >= units]
        gone = tuple(f"{kind}.{index}." for kind in ("units", "heads") for index in range(units))
        self._parameters.forget([n for n in self._parameters.tensors if n.startswith(gone)])

    @torch.no_grad()
    def latent(self, x: NDArray[np.float32]) -> Latent:
        """See `TrainEngine.latent`."""
        return self._frozen().latent(x)

    def _frozen(self) -> FrozenPrefix:
        if self._prefix is None:
            raise RuntimeError("no unit is frozen: freeze comes first")
        return self._prefix

    @torch.no_grad()
    def train_latent_step(
        self,
        latent: Latent,
        labels: NDArray[np.int64],
        *,
        learning_rate: float,
        look_ahead_weight: float,
        places: NDArray[np.bool_] | None = None,
    ) -> StepReport:
        """See `TrainEngine.train_latent_step`."""
        rows = self._frozen().feature(latent)
        targets = self._targets(labels, places, len(rows.codes))
        return self._train(Batch(rows, *targets), learning_rate, look_ahead_weight)

    @torch.no_grad()
    def train_step(
        self,
        x: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        learning_rate: float,
        look_ahead_weight: float,
        places: NDArray[np.bool_] | None = None,
    ) -> StepReport:
        """See `TrainEngine.train_step`."""
        targets = self._targets(labels, places, len(x))
        if self._prefix is not None:
            batch = Batch(self._prefix.feature(self._prefix.latent(x)), *targets)
        else:
            rows = as_rows(x, self._spec, self._device.name)
            self._classes = max(self._classes, int(labels.max()) + 1)
            batch = self._batch(rows, *targets)
        return self._train(batch, learning_rate, look_ahead_weight)

    def _targets(
        self, labels: NDArray[np.int64], places: NDArray[np.bool_] | None, samples: int
    ) -> tuple[Tensor, Tensor | None]:
        check_targets(labels, places, samples=samples, classes=self._spec.max_classes)
        where = self._device.name
        # A copy: one mask for all rows is a view that no tensor can be made of.
        own = None if places is None else to_device(np.array(places), where)
        return to_device(labels, where), own

    def _train(self, batch: Batch, learning_rate: float, look_ahead_weight: float) -> StepReport:
        step = Step(self._seed, self._step, learning_rate)
        losses = self._learn(batch, step, look_ahead_weight)
        report = StepReport(tuple(losses))
        if report.finite:
            self._parameters.step(self._gradients, learning_rate)
            self._step += 1
        self._gradients.clear()
        return report

    def _batch(self, rows: Tensor, labels: Tensor, places: Tensor | None) -> Batch:
        codes, scale = self._first_codes(
            self._precision, self._rule, rows, self._mean, self._std, self._image
        )
        key = NoiseKey(self._seed, self._step, _WRONG_LABELS)
        draw = Draw(self._classes, key, lambda: self._goodness(rows))
        batch = self._rule.batch(self._precision, Feature(codes, scale), labels, places, draw)
        self._input_scale.follow(scale)
        return batch

    def _goodness(self, rows: Tensor) -> Tensor | None:
        """Goodness of each class, as the network would serve; None before it has scales."""
        if self._step == 0:
            return None
        network = PredictNetwork(
            self._spec, self._serving_arrays(), self._rule, self._precision, self.fusion
        )
        return network.goodness(rows)

    def _learn(self, batch: Batch, step: Step, look_ahead_weight: float) -> list[float]:
        """All units forward and backward; the losses, as far as they are finite."""
        units = self._units

        def backward(place: int, error: Tensor, *, update: bool, propagate: bool) -> Terms | None:
            return units[place].unit.backward(error, step, update=update, propagate=propagate)

        chain = Chain(
            units=len(units),
            own_error=lambda place: units[place].own_error(),
            error=lambda place, later, weight: units[place].error(later, weight),
            later_error=lambda place, later: units[place].later_error(later),
            copied=copied,
            backward=backward,
        )
        look_ahead = self._recipe.look_ahead.step(chain, look_ahead_weight)
        losses: list[float] = []
        a = batch.rows
        for place, local in enumerate(units):
            a = local.unit.forward(a)
            losses.append(local.judge(batch.targets, batch.places))
            if not np.isfinite(losses[-1]):
                return losses
            look_ahead.after_forward(place)
        look_ahead.finish()
        return losses

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
        copied = {name: to_host(tensor).copy() for name, tensor in arrays.items()}
        weights = Weights(self._spec, classes, copied, version)
        with TorchPredictEngine(weights, self._device) as engine:
            canary = copied["canary.input"].reshape(CANARY_ROWS, *self._spec.input_shape)
            copied["canary.goodness"] = engine.predict(canary).goodness
        weights = Weights(self._spec, classes, copied, version, parent, last_seq)
        weights.check()
        return weights

    def _serving_arrays(self) -> dict[str, Tensor]:
        """What answers are computed from; not copied."""
        arrays = {"input.mean": self._mean, "input.std": self._std}
        if self._prefix is not None:
            arrays |= self._prefix.arrays
        for local in self._units:
            exported = local.unit.export()
            arrays |= {f"units.{local.index}.{name}": value for name, value in exported.items()}
        if not isinstance(self._spec.units[0], DenseUnitSpec):
            arrays["input.scale"] = self._input_scale.exported
        if self._spec.label_places:
            arrays["input.label_value"] = self._mean.new_full((), self._recipe.label_value)
        head = self._units[-1].head_parameters
        return arrays | {f"head.{name}": value for name, value in head.items()}

    def _canary_input(self) -> Tensor:
        """Made up within two standard deviations: weights files travel, samples should not."""
        key, device = NoiseKey(0, 0, 0), self._device.name
        deviations = uniform(CANARY_ROWS, self._spec.features, key, device).mul_(4).sub_(2)
        limit = torch.finfo(torch.float32).max  # which a sensor may send for "no reading"
        return (self._mean + self._std * deviations).clamp(-limit, limit)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """See `TrainEngine.state`."""
        return {name: to_host(tensor).copy() for name, tensor in self._tensors().items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """See `TrainEngine.load_state`."""
        ours, theirs = 0 if self._prefix is None else self._prefix.units, frozen_units(state)
        if ours != theirs:
            raise WeightsError(
                f"training state has {theirs} units frozen, the engine has {ours}: an engine is "
                "frozen as far as the state before it is given it"
            )
        own = self._tensors()
        if unknown := sorted(state.keys() ^ own.keys()):
            raise WeightsError(f"training state is of another model: {', '.join(unknown)}")
        for name, tensor in own.items():
            dtype = tensor.new_empty(0, device="cpu").numpy().dtype
            if (state[name].shape, state[name].dtype) != (tensor.shape, dtype):
                raise WeightsError(f"training state is of another model: {name!r}")
        given = {n: to_device(np.array(array), self._device.name) for n, array in state.items()}
        self._mean.copy_(given["input.mean"])
        self._std.copy_(given["input.std"])
        self._input_scale.load(given["input.scale"])
        for index, unit in ((local.index, local.unit) for local in self._units):
            unit.load_state({name: given[f"units.{index}.{name}"] for name in unit.state()})
        parameters = self._parameters.state()
        self._parameters.load_state({name: given[f"parameters.{name}"] for name in parameters})
        self._step = int(given["step"])
        self._classes = int(given["classes"])
        if self._prefix is not None:
            self._prefix = self._prefix.loaded(given, self._serving_arrays())

    def _tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on; not copied."""
        tensors = {
            "input.mean": self._mean,
            "input.std": self._std,
            "input.scale": self._input_scale.value,
            "step": torch.tensor(self._step),
            "classes": torch.tensor(self._classes),
        }
        if self._prefix is not None:
            tensors |= self._prefix.state()
        for local in self._units:
            state = local.unit.state()
            tensors |= {f"units.{local.index}.{name}": value for name, value in state.items()}
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
