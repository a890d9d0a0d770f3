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

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

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
        self._optimizer = optimizer
        self._moments = {
            moment: {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
            for moment in (("exp_avg", "exp_avg_sq") if optimizer.name == "adam" else ("momentum",))
        }
        self._steps = {name: tensor.new_zeros(()) for name, tensor in self.tensors.items()}

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """One step of the tensors that have a gradient.

        Args:
            gradients: float32, the shapes of `tensors`.
            learning_rate: Step size.
        """
        tensors = [self.tensors[name] for name in gradients]
        moments = [[moment[name] for name in gradients] for moment in self._moments.values()]
        if self._optimizer.name == "adam":
            # torch's functions and not its optimizer objects: those cost 0.3 ms a call.
            adamw(
                tensors,
                [*gradients.values()],
                moments[0],
                moments[1],
                [],
                [self._steps[name] for name in gradients],
                fused=True,
                amsgrad=False,
                beta1=BETA1,
                beta2=BETA2,
                lr=learning_rate,
                weight_decay=self._optimizer.weight_decay,
                eps=EPSILON,
                maximize=False,
            )
            return
        torch._foreach_mul_(tensors, 1.0 - learning_rate * self._optimizer.weight_decay)
        sgd(
            tensors,
            [*gradients.values()],
            [*moments[0]],
            fused=True,
            weight_decay=0.0,
            momentum=MOMENTUM,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def forget(self, names: Collection[str]) -> None:
        """Let go of tensors that move no more, and of what moved them."""
        for held in (self.tensors, *self._moments.values(), self._steps):
            for name in names:
                del held[name]

    def state(self) -> dict[str, Tensor]:
        """Everything a later `load_state` needs to take the same next step; not copied."""
        state = dict(self.tensors)
        for moment, values in {**self._moments, "step": self._steps}.items():
            state |= {f"{name}.{moment}": value for name, value in values.items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave.

        Raises:
            KeyError: A name is missing.
        """
        for name, value in self.state().items():
            value.copy_(state[name])
