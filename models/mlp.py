"""Multi-layer perceptron: each unit is one dense layer and its ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import FFModel, FFUnit, scaled_normal
from models.spec import ModelSpec


class DenseUnit(FFUnit):
    """`y = relu(x W^T + b)`, with `W` `[outputs, inputs]`."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        # Without memory first: torch would draw values of its own, and move its global generator.
        self.linear = nn.Linear(inputs, outputs, device="meta")
        self.linear.weight = nn.Parameter(scaled_normal((outputs, inputs), inputs, generator))
        self.linear.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs] -> [batch, outputs]`."""
        return torch.relu(self.linear(x))


def build_mlp(spec: ModelSpec, seed: int) -> FFModel:
    """An MLP with weights drawn from `seed`; the same seed gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    return FFModel([DenseUnit(i, o, generator) for i, o in spec.unit_sizes])
