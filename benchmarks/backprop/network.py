"""The float networks that back-propagation trains: units, then a linear layer to the classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows
from torch.utils.checkpoint import checkpoint

from benchmarks.trial import LinearSpec
from models import ModelSpec
from models.build import build_model
from models.pooling import pooled_shape


def build_network(spec: ModelSpec | LinearSpec, seed: int, *, recompute: bool = False) -> Network:
    """A network with weights drawn from `seed`.

    Dense: the layers of the Forward-Forward units, started as torch starts a linear layer, with
    ReLU between them and no length normalisation. Conv: the units as Forward-Forward has them, and
    the head that it has at the last of them.

    Args:
        spec: The network's shape.
        seed: Same seed, same bits.
        recompute: Keep only what lies between units, and compute a unit again on the way back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(spec, LinearSpec):
            return Network([], nn.Linear(spec.features, spec.max_classes), recompute)
        if spec.name == "mlp":
            units: list[nn.Module] = [
                nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())
                for inputs, outputs in spec.unit_sizes
            ]
            return Network(units, nn.Linear(spec.hidden[-1], spec.max_classes), recompute)
        head = PooledLinear(spec.units[-1].output_shape, spec.max_classes)
    network = Network(list(build_model(spec, seed).units), head, recompute)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


class PooledLinear(nn.Module):
    """Average-pool as Forward-Forward's linear heads do (models/pooling.py), then a linear layer.

    Pooled to one pixel, as these networks are usually ended, a narrow one is a worse baseline:
    67.4 against 73.3 %.

    Args:
        activity_shape: (H, W, C) of one sample's last activity.
        classes: Logits.
    """

    def __init__(self, activity_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        height, width, channels = pooled_shape(activity_shape)
        self._pooled = (height, width)
        self.linear = nn.Linear(height * width * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width] -> [batch, classes]`."""
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, self._pooled).flatten(1))
        return logits


class Network(nn.Module):
    """Units in order, then the classifier.

    Args:
        units: First to last.
        head: From the last activity to logits.
        recompute: Whether a unit's inside is computed again on the way back (Chen et al. 2016,
            arXiv 1604.06174v2).
    """

    def __init__(self, units: list[nn.Module], head: nn.Module, recompute: bool) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.head = head
        self._recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 `[batch, classes]`."""
        for unit in self.units:
            if self._recompute and torch.is_grad_enabled():
                x = checkpoint(
                    unit,
                    x,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=partial(_contexts, unit),
                )
            else:
                x = unit(x)
        logits: Tensor = self.head(x)
        return logits


def _contexts(unit: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first and the second computation of a unit."""
    return nullcontext(), _statistics_kept(unit)


@contextmanager
def _statistics_kept(unit: nn.Module) -> Iterator[None]:
    """Batch norms that count no batch: the first computation counted it."""
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:  # torch leaves the second computation by an exception once it has what it needs
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
