"""Float32 masters of one unit and the optimizer that moves them.

A learning step of 1e-3 is far below one int8 code, so updates accumulate in float32 and the codes
are made again after each step. The optimizer is torch's fused Adam (Kingma & Ba 2015, arXiv
1412.6980, algorithm 1), one per unit, so that a unit can be updated and its gradient dropped before
the next unit's gradient exists.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamMasters:
    """Named float32 tensors and their Adam moments.

    Args:
        tensors: The initial values; copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._adam = torch.optim.Adam(list(self.tensors.values()), fused=True)
        for tensor in self.tensors.values():
            self._adam.state[tensor] = {
                "step": torch.zeros(()),
                **{moment: torch.zeros_like(tensor) for moment in _MOMENTS},
            }

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """One Adam step; the gradients are released afterwards.

        Args:
            gradients: float32, the shapes of `tensors`, every name.
            learning_rate: Adam's alpha.
        """
        for name, tensor in self.tensors.items():
            tensor.grad = gradients[name]
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Everything a later `load_state` needs to take the same next step; not copied."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            state[name] = tensor
            for part, value in self._adam.state[tensor].items():
                state[f"{name}.{part}"] = value
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave.

        Raises:
            KeyError: A name is missing.
        """
        for name, value in self.state().items():
            value.copy_(state[name])
