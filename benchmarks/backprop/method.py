"""Back-propagation as a `Method`: the network, its precision, and torch's fused optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows
from torch.optim import Optimizer

from benchmarks.backprop.gradient import GradientQuantizer, Rounding
from benchmarks.backprop.layers import Int8Layer, convert_to_int8
from benchmarks.backprop.masked_relu import masked_relus
from benchmarks.backprop.network import build_network
from benchmarks.backprop.policies import Dai8, Gdai8Like, Nearest, Strong, Ui8
from benchmarks.method import Method, share_right
from benchmarks.samples import Samples
from benchmarks.trial import LinearSpec, Trial
from engines.fusion import Fusion, open_fusion
from engines.optim import MOMENTUM
from engines.standardize import fit_standardization, standardize
from models import ModelSpec
from models.blocks import SqueezeExcite

_RECOMPUTED = "bp-fp32-checkpoint"
_INT8_WEIGHTS = "bp-int8-codes"
# How the INT8 methods round gradients; one policy a layer.
_POLICIES: Mapping[str, Callable[[Rounding], GradientQuantizer]] = {
    "bp-int8": Nearest,
    _INT8_WEIGHTS: Nearest,
    "bp-int8-strong": Strong,
    "bp-ui8": Ui8,
    "bp-dai8": Dai8,
    "bp-gdai8-like": Gdai8Like,
}
# Torch's fused kernels, which are what `engines/optim.py` calls.
_OPTIMIZERS: Mapping[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "adam": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM, fused=True),
}
BACKPROP_NAMES = ("bp-fp32", _RECOMPUTED, *_POLICIES)


class Backprop(Method):
    """Back-propagation through torch's autograd, in the precision that the trial's method names.

    Args:
        trial: Method, seed and recipe.
        spec: Shape of the network.
        fitted: Samples for the standardisation, float32.
    """

    def __init__(self, trial: Trial, spec: ModelSpec | LinearSpec, fitted: Samples) -> None:
        self._trial = trial
        self._mean, self._std = fit_standardization(torch.from_numpy(fitted.x))
        self._as_images = spec.name != "mlp"
        self.network = build_network(spec, trial.seed, recompute=trial.method == _RECOMPUTED)
        self._twins: list[Int8Layer] = []
        self._fusion: Fusion | None = None
        if trial.method in _POLICIES:
            self._fusion = open_fusion(trial.fusion)
            # A gate's two layers stay float32, as in the Forward-Forward engine: they see one pixel
            # a sample.
            self._twins = convert_to_int8(
                self.network,
                _POLICIES[trial.method],
                Rounding(trial.seed, self._fusion),
                (SqueezeExcite,),
            )
        self._round_weights()
        self._learning_rate = 0.0
        self._optimizer = _OPTIMIZERS[trial.optimizer](self._groups())

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by rate and decay: UI8 gives every layer a rate; only matrices decay."""
        layers = [[*twin.parameters()] for twin in self._twins]
        own = {parameter for layer in layers for parameter in layer}
        layers.append([p for p in self.network.parameters() if p not in own])
        return [
            {"params": group, "weight_decay": decay, "layer": index}
            for index, layer in enumerate(layers)
            for group, decay in (
                ([p for p in layer if p.ndim > 1], self._trial.weight_decay),
                ([p for p in layer if p.ndim == 1], 0.0),
            )
            if group
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """See `Method.settings`; float32 methods have no chains to fuse."""
        return {"fusion": None if self._fusion is None else self._fusion.name}

    @property
    def parameters(self) -> int:
        """See `Method.parameters`."""
        return sum(tensor.numel() for tensor in self.network.parameters())

    def start_step(self, epoch: float) -> None:
        """See `Method.start_step`."""
        self._learning_rate = self._trial.learning_rate_at(epoch)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """See `Method.step`."""
        self.network.train()
        with masked_relus() if self._twins else nullcontext():
            logits = self.network(self.input(x))
            loss = F.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        factors = [twin.quantizer.learning_rate_factor for twin in self._twins] + [1.0]
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * factors[group["layer"]]
        self._optimizer.step()
        # Dropped at once: gradients that outlive the step would count against the baseline.
        self._optimizer.zero_grad(set_to_none=True)
        self._round_weights()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, samples: Samples) -> float:
        """See `Method.accuracy`."""
        self.network.eval()
        return share_right(lambda x: self.network(self.input(x)).argmax(1).numpy(), samples)

    def input(self, x: NDArray[np.float32]) -> Tensor:
        """What the network is given: samples standardised, float32, as rows or as images."""
        rows = torch.from_numpy(x).flatten(start_dim=1)
        rows = standardize(rows, self._mean, self._std)
        if self._as_images:
            return rows.view(x.shape).contiguous(memory_format=torch.channels_last)
        return rows

    def _round_weights(self) -> None:
        if self._trial.method == _INT8_WEIGHTS:
            for twin in self._twins:
                twin.round_weight()
