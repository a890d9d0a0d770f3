"""The gradient of every layer of a trained MLP on one batch, in float32 and without a step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from benchmarks.backprop.method import Backprop
from benchmarks.samples import Samples
from engines import Recipe, Weights
from engines.rule import open_rule
from engines.standardize import standardize
from models.base import length_normalize


class LayerGradient(NamedTuple):
    """One dense layer's.

    Args:
        error: At the pre-activation, float32 `[batch, out]`.
        weight: At the weights, float32 `[out, in]`.
    """

    error: Tensor
    weight: Tensor


def backprop_gradients(method: Backprop, samples: Samples) -> list[LayerGradient]:
    """Those of cross-entropy, by autograd, first layer to last.

    Args:
        method: A trained float32 MLP.
        samples: The batch, float32 features.
    """
    layers = [module for module in method.network.modules() if isinstance(module, nn.Linear)]
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, given: Any, output: Tensor) -> None:  # noqa: ANN401 - torch's own
        outputs.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    loss = F.cross_entropy(
        method.network(method.input(samples.x)), torch.from_numpy(samples.labels)
    )
    for hook in hooks:
        hook.remove()
    found = torch.autograd.grad(loss, [*outputs, *(layer.weight for layer in layers)])
    errors, weights = found[: len(layers)], found[len(layers) :]
    return [LayerGradient(*pair) for pair in zip(errors, weights, strict=True)]


def forward_forward_gradients(weights: Weights, samples: Samples) -> list[LayerGradient]:
    """Those of each unit's own loss, first unit to last, from the written-out equations.

    `dL/da = dL/dg dg/dy [y > 0]` at the pre-activation a, `dL/dW = (dL/da)^T x`: goodness, loss and
    their gradients are the engine's (engines/heads.py, engines/objective.py), the products float32.

    Args:
        weights: Of an exported MLP.
        samples: The batch, float32 features.
    """

    def array(name: str) -> Tensor:
        values: NDArray[Any] = weights.arrays[name]
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    rule = open_rule(weights.spec, Recipe())
    rows = torch.from_numpy(samples.x).flatten(1)
    x = standardize(rows, array("input.mean"), array("input.std"))
    found = []
    for index, head in enumerate(rule.heads):
        unit = f"units.{index}"
        w = array(f"{unit}.weight.codes") * array(f"{unit}.weight.scale")
        y = (x @ w.t() + array(f"{unit}.bias")).relu()
        _, grad = rule.objective.loss(head.goodness(y, {}), torch.from_numpy(samples.labels))
        error = head.grad_activity(grad, y, {}) * (y > 0)
        found.append(LayerGradient(error, error.t() @ x))
        x, _ = length_normalize(y)
    return found
