"""Errors and what units pass back lie in memory that is used again: nobody reads it too late.

Steps as they are, against steps in which every product has fresh memory and no error is written
over. INT8, since the float twin has no such memory.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines import LookAhead
from engines.int8 import Scratch
from tests.networks import TINY, batch_of, opened

FORMS = {
    "exact": LookAhead("exact"),
    "discounted": LookAhead("discounted"),
    "exact, window 1": LookAhead("exact", 1),
    "discounted, window 2": LookAhead("discounted", 2),
}
STEPS = 2


def after_steps(name: str, form: LookAhead, weight: float) -> list[np.ndarray]:
    """Losses and all that the next step depends on."""
    engine = opened(TINY[name], "int8", form)
    losses = []
    for number in range(STEPS):
        x, labels = batch_of(TINY[name], 4, seed=number)
        losses += engine.train_step(x, labels, learning_rate=0.01, look_ahead_weight=weight).losses
    return [np.array(losses), *engine.state().values()]


def bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_memory_that_is_used_again_changes_no_bit(monkeypatch, name, form, weight):
    found = bits(after_steps(name, FORMS[form], weight))

    def fresh(self: Scratch, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._memory.dtype)

    monkeypatch.setattr(Scratch, "take", fresh)
    monkeypatch.setattr(torch.Tensor, "masked_fill_", torch.Tensor.masked_fill)
    assert bits(after_steps(name, FORMS[form], weight)) == found
