"""Float32 masters and the optimizers that move them, whole or with small state.

    adam   m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
           w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)   Kingma & Ba 2015, arXiv
                                                                         1412.6980v9, algorithm 1
    sgd    m <- mu m + g;  w <- w - lr m                                 Sutskever et al. 2013

Both after `w <- (1 - lr * decay) w`, decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101v3,
algorithm 2). `FloatMasters` holds what is small and needs float32 (biases, gammas, heads), all of a
network's in one call of torch's fused kernel. Weight matrices: engines/masters.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.recipe import Optimizer

BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
MOMENTUM = 0.9


class FloatMasters:
    """Named float32 tensors and the state of their optimizer.

    Args:
        tensors: The initial values; copied.
        optimizer: Moves them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._names = ("exp_avg", "exp_avg_sq") if optimizer.name == "adam" else ("momentum_buffer",)
        parameters = list(self.tensors.values())
        self._optimizer: torch.optim.Optimizer
        if optimizer.name == "adam":
            self._optimizer = torch.optim.AdamW(
                parameters, weight_decay=optimizer.weight_decay, fused=True
            )
        else:
            self._optimizer = torch.optim.SGD(
                parameters, momentum=MOMENTUM, weight_decay=0.0, fused=True
            )
        self._decay = optimizer.weight_decay if optimizer.name == "sgd" else 0.0
        for tensor in parameters:
            state = {moment: torch.zeros_like(tensor) for moment in self._names}
            if optimizer.name == "adam":
                state["step"] = torch.zeros(())
            self._optimizer.state[tensor] = state

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """One step of the tensors that have a gradient; the gradients are released afterwards.

        Args:
            gradients: float32, the shapes of `tensors`.
            learning_rate: Step size.
        """
        for name, gradient in gradients.items():
            self.tensors[name].grad = gradient
        if self._decay:
            for name in gradients:
                self.tensors[name].mul_(1.0 - learning_rate * self._decay)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Everything a later `load_state` needs to take the same next step; not copied."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            state[name] = tensor
            for part, value in self._optimizer.state[tensor].items():
                state[f"{name}.{part}"] = value
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave.

        Raises:
            KeyError: A name is missing.
        """
        for name, value in self.state().items():
            value.copy_(state[name])
