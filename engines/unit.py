"""What the trainer asks of a unit, whatever it is made of.

A unit computes with integer products around masters of its own, keeps after its forward pass only
what its backward pass needs (int8 codes and a few floats a row or channel), and is told an error to
learn from and an error to pass on. It knows nothing of goodness, losses or look-ahead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from engines.feature import Feature
from engines.precision import Precision, Terms
from engines.rounding import NoiseKey

# Tensors of noise a unit may draw in one step: two errors and one update for each of its layers.
_TENSORS_PER_LAYER = 3
_LAYERS_PER_UNIT = 8


class Step(NamedTuple):
    """The step that is being taken.

    Args:
        seed: Of the run.
        number: Steps taken before.
        learning_rate: Of the optimizer.
    """

    seed: int
    number: int
    learning_rate: float

    def key(self, unit: int, layer: int, tensor: int) -> NoiseKey:
        """Key of one tensor of rounding noise."""
        place = (unit * _LAYERS_PER_UNIT + layer) * _TENSORS_PER_LAYER + tensor
        return NoiseKey(self.seed, self.number, place)


class Gradients(dict[str, Tensor]):
    """Gradients of the small float32 parameters that this step has met, by name."""


class Kept(Protocol):
    """A unit's activity in the form in which it is kept; a tuple of tensors.

    The chains that read it make the float32 values as they go, and store none.
    """

    def activity(self, precision: Precision) -> Tensor:
        """What the goodness is read from, as the kept codes have it: float32 `[B, N]` or NHWC."""

    def error_at_activity(self, later: Terms) -> Tensor:
        """The gradient at what `forward` gave, carried to the activity; float32 of its shape."""


class TrainUnit(ABC):
    """One unit that learns."""

    @abstractmethod
    def forward(self, a: Feature) -> Feature:
        """What the next unit gets; keeps what `kept` and `backward` need."""

    @property
    @abstractmethod
    def kept(self) -> Kept:
        """What the forward pass kept of the unit's activity."""

    @abstractmethod
    def backward(self, error: Tensor, step: Step, *, update: bool, propagate: bool) -> Terms | None:
        """Back-propagate an error.

        Args:
            error: Gradient at the activity, float32; its memory is the unit's from now on.
            step: Names the rounding noise.
            update: Learn from it, after the old weights were used, and let go of what the forward
                pass kept: an update comes last.
            propagate: Return the gradient at the unit's input, good until the next pass of any
                unit, forward or backward, which may use the memory of its products.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Masters, optimizer state, running statistics and serving scales; not copied."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """What serving needs, under the names of `engines.base.expected_arrays`; not copied."""
