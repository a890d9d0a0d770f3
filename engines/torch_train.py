"""One FF-INT8 training step on torch: where the objective, the look-ahead and INT8 meet.

    a_1 = quantize(standardize(x))
    for each unit l:                            forward
        y_l     = relu(a_l W_l^T + b_l)         INT8 product, float32 epilogue
        g_l     = goodness of y_l per class;  L_l, dL_l/dg_l
        a_{l+1} = quantize(y_l / n_l)           n_l: root mean square of each row
    for each unit l, last to first:             look-ahead sweep (engines/look_ahead.py)
        weight gradient and, where lambda > 0, input gradient: INT8 products
        Adam on the float32 master; new codes

What a unit keeps between the two loops is `a_l`, `a_{l+1}` (int8), `n_l` and `dL_l/dg_l` (one, and
C, floats a row): its activity is `n_l * dequantize(a_{l+1})`, so no float copy of it is stored.
Differs from the paper (FF-INT8, arXiv 2506.22771v1, Algorithm 1): one pass over labelled data takes
the place of a positive and a negative pass (engines/objective.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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
from engines.dense import lower
from engines.heads import GroupHead
from engines.int8 import QTensor
from engines.look_ahead import Chain, LookAhead
from engines.objective import ClassGoodness
from engines.precision import PRECISIONS
from engines.rounding import NoiseKey, uniform
from engines.standardize import fit_standardization, standardize
from engines.torch_predict import TorchPredictEngine, as_rows
from models import ModelSpec
from models.base import length_normalize
from models.mlp import build_mlp

# How fast the serving scale of a unit's input follows the absmax of the batches.
_SCALE_MOMENTUM = 0.05


class _Trace(NamedTuple):
    """What the forward pass leaves of one unit for the sweep."""

    input: QTensor  # a_l, [batch, in]
    output: QTensor  # a_{l+1}, [batch, out]
    length: Tensor  # n_l, [batch, 1]
    grad_goodness: Tensor  # dL_l/dg_l, [batch, C]

    def activity(self) -> Tensor:
        """`y_l` as the codes have it, float32 `[batch, out]`."""
        return self.output.dequantize().mul_(self.length)


class TorchTrainEngine(TrainEngine):
    """See `TrainEngine`.

    Args:
        spec: The network.
        seed: Draws the first weights and keys the rounding noise.
        precision: `int8`, or `fp32` for its float twin, which cannot be exported.
    """

    def __init__(self, spec: ModelSpec, *, seed: int, precision: str = "int8") -> None:
        self._spec = spec
        self._seed = seed
        self._precision = PRECISIONS[precision]()
        self._objective = ClassGoodness(spec.max_classes)
        self._head = GroupHead(spec.max_classes)
        self._units = [lower(u, self._precision) for u in build_mlp(spec, seed).units]
        self._input_scales = [torch.ones(()) for _ in self._units]
        self._mean = torch.zeros(spec.features)
        self._std = torch.ones(spec.features)
        self._step = 0

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
        rows = standardize(as_rows(x, self._spec), self._mean, self._std)
        self._check_labels(labels, len(rows))
        traces, losses = self._forward(rows, torch.from_numpy(labels))
        report = StepReport(tuple(losses))
        if report.finite:
            self._sweep(traces, learning_rate, look_ahead_weight)
            self._step += 1
        return report

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

    def _forward(self, x: Tensor, labels: Tensor) -> tuple[list[_Trace], list[float]]:
        traces: list[_Trace] = []
        losses: list[float] = []
        a = self._precision.activation(x)
        for index, unit in enumerate(self._units):
            momentum = _SCALE_MOMENTUM if self._step else 1.0
            self._input_scales[index].lerp_(a.scale, momentum)
            activity = unit.forward(a)
            loss, grad_goodness = self._objective.loss(self._head.goodness(activity, {}), labels)
            direction, length = length_normalize(activity)
            output = self._precision.activation(direction)
            traces.append(_Trace(a, output, length, grad_goodness))
            losses.append(loss.item())
            a = output
        return traces, losses

    def _sweep(self, traces: list[_Trace], learning_rate: float, weight: float) -> None:
        def own_error(index: int) -> Tensor:
            trace = traces[index]
            return self._head.grad_activity(trace.grad_goodness, trace.activity(), {})

        def through_relu(index: int, error: Tensor) -> Tensor:
            return error * (traces[index].output.codes > 0)

        def backward(index: int, error: Tensor, *, update: bool, propagate: bool) -> Tensor | None:
            unit, trace, error = self._units[index], traces[index], through_relu(index, error)
            below: Tensor | None = None
            if propagate:
                key = NoiseKey(self._seed, self._step, 2 * index + 1)
                u = unit.grad_input(error, key)
                # J^T u of z = y / n: (u - z mean(u z)) / n, Hinton 2022 (arXiv 2212.13345)
                # section 2.
                joint = traces[index - 1]
                z = joint.output.dequantize()
                below = (u - z * (u * z).mean(dim=1, keepdim=True)).div_(joint.length)
            if update:
                key = NoiseKey(self._seed, self._step, 2 * index)
                unit.update(error, trace.input, key, learning_rate)
            return below

        chain = Chain(len(traces), own_error, backward, release=lambda index: None)
        LookAhead().step(chain, weight).finish()

    def export(
        self, *, classes: tuple[Label, ...], version: int, parent: int | None, last_seq: int
    ) -> Weights:
        """See `TrainEngine.export`.

        Raises:
            WeightsError: The precision is fp32, or the network has diverged.
        """
        if self._precision.name != "int8":
            raise WeightsError("only int8 networks are exported; fp32 is their twin for tests")
        arrays = {"input.mean": self._mean, "input.std": self._std}
        for index, unit in enumerate(self._units):
            arrays[f"units.{index}.weight.codes"] = unit.weight.codes
            arrays[f"units.{index}.weight.scale"] = unit.weight.scale
            arrays[f"units.{index}.bias"] = unit.bias
            arrays[f"units.{index}.input_scale"] = self._input_scales[index]
        arrays["canary.input"] = self._canary_input()
        arrays["canary.goodness"] = torch.zeros(CANARY_ROWS, self._spec.max_classes)
        copied = {name: tensor.numpy().copy() for name, tensor in arrays.items()}
        with TorchPredictEngine(Weights(self._spec, classes, copied, version)) as engine:
            canary = copied["canary.input"].reshape(CANARY_ROWS, *self._spec.input_shape)
            copied["canary.goodness"] = engine.predict(canary).goodness
        weights = Weights(self._spec, classes, copied, version, parent, last_seq)
        weights.check()
        return weights

    def _canary_input(self) -> Tensor:
        """Made up within two standard deviations: weights files travel, samples should not."""
        shape = torch.Size((CANARY_ROWS, self._spec.features))
        deviations = uniform(shape, NoiseKey(0, 0, 0)).mul_(4).sub_(2)
        return self._mean + self._std * deviations

    def state(self) -> dict[str, NDArray[np.generic]]:
        """See `TrainEngine.state`."""
        tensors = self._tensors() | {"step": torch.tensor(self._step)}
        return {name: tensor.numpy().copy() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """See `TrainEngine.load_state`."""
        own = self._tensors() | {"step": torch.tensor(self._step)}
        if unknown := sorted(state.keys() ^ own.keys()):
            raise WeightsError(f"training state is of another model: {', '.join(unknown)}")
        for name, tensor in own.items():
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.numpy().dtype):
                raise WeightsError(f"training state is of another model: {name!r}")
        given = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        self._mean.copy_(given["input.mean"])
        self._std.copy_(given["input.std"])
        for index, unit in enumerate(self._units):
            self._input_scales[index].copy_(given[f"units.{index}.input_scale"])
            unit.load_state({name: given[f"units.{index}.{name}"] for name in unit.state()})
        self._step = int(given["step"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"input.mean": self._mean, "input.std": self._std}
        for index, unit in enumerate(self._units):
            tensors[f"units.{index}.input_scale"] = self._input_scales[index]
            tensors |= {f"units.{index}.{name}": value for name, value in unit.state().items()}
        return tensors
