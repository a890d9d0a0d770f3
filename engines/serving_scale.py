"""The scale that serving will quantize with, learned while training.

Training scales each tensor by its own absmax; serving must not, since then an answer would depend
on which requests share a batch. So each place where codes are made follows the batches' scales by
an exponential average, and exports it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOMENTUM = 0.05


class ServingScale:
    """An exponential average of the scales seen; the first one counts whole.

    Args:
        device: Of the scales.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._average = torch.zeros((), device=device)

    @property
    def value(self) -> Tensor:
        """float32 `[]`; 0 before the first batch."""
        return self._average

    @property
    def exported(self) -> Tensor:
        """float32 `[]`: 1 before the first batch, so that untrained weights may serve."""
        return torch.where(self._average == 0, 1.0, self._average)

    def follow(self, scale: Tensor) -> None:
        """Take in a batch's scale, float32 `[]`, above zero."""
        momentum = torch.where(self._average == 0, 1.0, _MOMENTUM)
        self._average.lerp_(scale, momentum)

    def load(self, value: Tensor) -> None:
        """Continue from a saved average."""
        self._average.copy_(value)
