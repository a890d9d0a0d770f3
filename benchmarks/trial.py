"""One trial: a method, a seed and the recipe that every method shares. Plain data, no torch.

Every method of a run sees the same samples in the same order, the same input standardisation, batch
size, hidden widths and learning rate, so that a difference between two records is the method's.

    learning rate of epoch e    r * (1 + cos(pi * e / E)) / 2        constant within the epoch
    lambda of epoch e           first + (last - first) * e / (E - 1)
"""

from __future__ import annotations

import dataclasses
import math

from engines.look_ahead import linear_schedule
from models import MODEL_NAMES, ModelSpec

METHOD_NAMES = ("bp-fp32", "ff-int8")
BASELINE = "bp-fp32"
DEFAULT_HIDDEN = (1000, 1000, 1000)


class TrialError(ValueError):
    """A trial asks for what cannot be; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one child process trains and measures.

    Args:
        method: One of `METHOD_NAMES`.
        model: One of `models.MODEL_NAMES`.
        data: Path of the training data, or `digits`.
        test: Path of the test data; None: as `datasets.open_split` has it.
        seed: Draws the weights, the order of the samples and the held-out part.
        epochs: E.
        batch: Samples per step; what is left over at an epoch's end waits for the next shuffle.
        hidden: Width of each hidden layer before `width` scales it.
        width: Factor on every width in `hidden`.
        learning_rate: r, Adam's step size in the first epoch.
        look_ahead: lambda in the first and in the last epoch; read by Forward-Forward methods.
        limit: Most training samples; None: all.
        threads: Threads of torch; None: its own choice.

    Raises:
        TrialError: A name is unknown, or a number is out of range.
    """

    method: str
    model: str
    data: str
    test: str | None
    seed: int
    epochs: int
    batch: int
    hidden: tuple[int, ...]
    width: float
    learning_rate: float
    look_ahead: tuple[float, float]
    limit: int | None
    threads: int | None

    def __post_init__(self) -> None:
        for what, name, known in (
            ("method", self.method, METHOD_NAMES),
            ("model", self.model, MODEL_NAMES),
        ):
            if name not in known:
                raise TrialError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
        for what, number in (
            ("epochs", self.epochs),
            ("batch", self.batch),
            ("limit", self.limit),
            ("threads", self.threads),
        ):
            if number is not None and number < 1:
                raise TrialError(f"{what} is {number}; wanted at least 1")
        if self.seed < 0:
            raise TrialError(f"seed is {self.seed}; wanted 0 or more")
        for what, value in (("width", self.width), ("learning rate", self.learning_rate)):
            if not (math.isfinite(value) and value > 0):
                raise TrialError(f"{what} is {value}; wanted a finite number above 0")
        if not all(math.isfinite(value) and value >= 0 for value in self.look_ahead):
            raise TrialError(
                f"look-ahead is {self.look_ahead}; wanted two finite numbers from 0 up"
            )

    def spec(self, input_shape: tuple[int, ...], classes: int) -> ModelSpec:
        """The network for data of one shape.

        Raises:
            TrialError: A hidden layer is narrower than the number of classes.
        """
        hidden = tuple(max(1, round(size * self.width)) for size in self.hidden)
        try:
            return ModelSpec(self.model, input_shape, classes, hidden)
        except ValueError as error:
            raise TrialError(f"{error}; see --hidden and --width") from error

    def learning_rate_at(self, epoch: int) -> float:
        """Adam's step size in `epoch`, counted from 0."""
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))

    def look_ahead_at(self, epoch: int) -> float:
        """Look-ahead weight lambda in `epoch`, counted from 0."""
        return linear_schedule(*self.look_ahead)(epoch / max(1, self.epochs - 1))
