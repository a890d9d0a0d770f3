"""One trial: a method, a seed and the recipe that every method shares. Plain data, no torch.

Every method of a run sees the same samples in the same order, the same input standardisation, batch
size, hidden widths and learning rate, so that a difference between two records is the method's.

With e epochs done of E, a fraction within an epoch, so that rates change at every step:

    cosine        r (1 + cos(pi e / E)) / 2
    one-cycle     from r / 25 up to r in the first 0.3 E, then down to r / 250,000, both by half
                  a cosine (Smith & Topin 2017, arXiv 1708.07120v3, in torch's `OneCycleLR` form,
                  its momentum left alone)
    lambda        first + (last - first) floor(e) / (E - 1), constant within the epoch
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

from engines.look_ahead import LookAhead, linear_schedule
from engines.recipe import (
    FUSION_NAMES,
    MASTER_NAMES,
    NEGATIVES_NAMES,
    OPTIMIZER_NAMES,
    Recipe,
)
from models import MODEL_NAMES, ModelSpec
from models.spec import CLASS_GOODNESS, FORWARD_FORWARD

METHOD_NAMES = (
    "bp-fp32",
    "bp-fp32-checkpoint",
    "bp-int8",
    "bp-int8-codes",
    "bp-int8-strong",
    "bp-ui8",
    "bp-dai8",
    "bp-gdai8-like",
    "ff-int8",
    "ff-int8-two-pass",
)
TWO_PASS = METHOD_NAMES[-1]
BASELINE = "bp-fp32"
SCHEDULES = ("cosine", "one-cycle")
PRODUCTS_NAMES = ("int8", "float32-exact")
INT8_UNITS = PRODUCTS_NAMES[0]
_RISE = 0.3
_RISE_FACTOR = 25.0
_FALL_FACTOR = 1e4
DEFAULT_HIDDEN = (1000, 1000, 1000)


class TrialError(ValueError):
    """A trial asks for what cannot be; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """The network of no hidden layer, which `ModelSpec` does not know: it has no unit.

    Args:
        input_shape: Shape of one sample.
        max_classes: Places for classes.
    """

    input_shape: tuple[int, ...]
    max_classes: int

    name = "mlp"
    hidden: ClassVar[tuple[int, ...]] = ()

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one child process trains and measures.

    Args:
        method: One of `METHOD_NAMES`.
        model: One of `models.MODEL_NAMES`.
        data: Path of the training data, or a word that `datasets.load` knows.
        test: Path of the test data; None: as `datasets.load_sources` has it.
        seed: Draws the weights, the order of the samples and the held-out part.
        epochs: E.
        batch: Samples per step; what is left over at an epoch's end waits for the next shuffle.
        hidden: Width of each hidden layer of the mlp before `width` scales it; none, and the
            network is a linear classifier, which has no units to learn by Forward-Forward.
        width: Factor on every width in `hidden`, or on the channels of a conv network.
        learning_rate: r, the optimizer's largest step size.
        schedule: One of `SCHEDULES`.
        optimizer: `adam`, or `sgd` with momentum 0.9.
        weight_decay: Decoupled (Loshchilov & Hutter, arXiv 1711.05101v3, algorithm 2), on weight
            matrices.
        augment: Whether training images are cropped and mirrored at random.
        look_ahead: lambda in the first and in the last epoch; this and the next three are read by
            Forward-Forward methods.
        look_ahead_form: `exact` or `discounted`; None: exact for the mlp, else discounted, which
            goes back through a block's inside once and not twice.
        window: Later units that are looked ahead to; None: all.
        masters: Where weights live between steps, one of `engines.recipe.MASTER_NAMES`; None:
            int16 where the chains are compiled, else float32.
        threshold: theta of the paper's objective; this and the next two are read by
            `ff-int8-two-pass`, see `engines.recipe.Recipe`.
        label_value: How long a label is as an input beside its sample.
        negatives: One of `engines.recipe.NEGATIVES_NAMES`.
        limit: Most training samples; None: all.
        threads: Threads of torch; None: its own choice.
        fusion: Whether the chains between INT8 products are compiled: one of `FUSION_NAMES`.
        products: `int8`, or `float32-exact` for the same integers where no INT8 hardware is
            (`benchmarks/exact_products.py`).

    Raises:
        TrialError: A name is unknown, or a number is out of range.
    """

    method: str
    model: str
    data: str
    epochs: int
    test: str | None = None
    seed: int = 0
    batch: int = 128
    hidden: tuple[int, ...] = DEFAULT_HIDDEN
    width: float = 1.0
    learning_rate: float = 1e-3
    schedule: str = SCHEDULES[0]
    optimizer: str = OPTIMIZER_NAMES[0]
    weight_decay: float = 0.0
    augment: bool = False
    look_ahead: tuple[float, float] = (0.2, 1.6)
    look_ahead_form: Literal["exact", "discounted"] | None = None
    window: int | None = None
    masters: str | None = None
    threshold: float = Recipe.threshold
    label_value: float = Recipe.label_value
    negatives: str = Recipe.negatives
    limit: int | None = None
    threads: int | None = None
    fusion: str = FUSION_NAMES[0]
    products: str = INT8_UNITS

    def __post_init__(self) -> None:
        for what, name, known in (
            ("method", self.method, METHOD_NAMES),
            ("model", self.model, MODEL_NAMES),
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZER_NAMES),
            ("fusion", self.fusion, FUSION_NAMES),
            ("products", self.products, PRODUCTS_NAMES),
            ("masters", self.masters, MASTER_NAMES),
            ("negatives", self.negatives, NEGATIVES_NAMES),
        ):
            if name is not None and name not in known:
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
        if self.optimizer == "sgd" and self.weight_decay:
            raise TrialError("torch's sgd has no decoupled weight decay; wanted 0 with it")
        try:
            _ = self.look_ahead_rule
        except ValueError as error:
            raise TrialError(str(error)) from error
        for what, value in (
            ("width", self.width),
            ("learning rate", self.learning_rate),
            ("threshold", self.threshold),
            ("label value", self.label_value),
        ):
            if not (math.isfinite(value) and value > 0):
                raise TrialError(f"{what} is {value}; wanted a finite number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise TrialError(
                f"weight decay is {self.weight_decay}; wanted a finite number from 0 up"
            )
        if not all(math.isfinite(value) and value >= 0 for value in self.look_ahead):
            raise TrialError(
                f"look-ahead is {self.look_ahead}; wanted two finite numbers from 0 up"
            )

    @property
    def look_ahead_rule(self) -> LookAhead:
        """Which later losses a Forward-Forward method counts."""
        form = self.look_ahead_form or ("exact" if self.model == "mlp" else "discounted")
        return LookAhead(form, self.window)

    def spec(self, input_shape: tuple[int, ...], classes: int) -> ModelSpec | LinearSpec:
        """The network for data of one shape.

        Raises:
            TrialError: The network, or the augmentation, does not fit the data.
        """
        if self.augment and len(input_shape) != 3:
            raise TrialError(
                f"samples have shape {[*input_shape]}; --augment wants [channels, height, width]"
            )
        objective = FORWARD_FORWARD if self.method == TWO_PASS else CLASS_GOODNESS
        try:
            if self.model != "mlp":
                return ModelSpec(
                    self.model, input_shape, classes, width=self.width, objective=objective
                )
            hidden = tuple(max(1, round(size * self.width)) for size in self.hidden)
            if not hidden and not self.method.startswith("ff-"):
                return LinearSpec(input_shape, classes)
            return ModelSpec(self.model, input_shape, classes, hidden, objective=objective)
        except ValueError as error:
            raise TrialError(f"{error}; see --model, --hidden and --width") from error

    def learning_rate_at(self, epoch: float) -> float:
        """AdamW's step size after `epoch` epochs."""
        done = epoch / self.epochs
        if self.schedule == "cosine":
            return _half_cosine(self.learning_rate, 0.0, done)
        first = self.learning_rate / _RISE_FACTOR
        if done < _RISE:
            return _half_cosine(first, self.learning_rate, done / _RISE)
        return _half_cosine(self.learning_rate, first / _FALL_FACTOR, (done - _RISE) / (1 - _RISE))

    def look_ahead_at(self, epoch: float) -> float:
        """Look-ahead weight lambda after `epoch` epochs."""
        return linear_schedule(*self.look_ahead)(math.floor(epoch) / max(1, self.epochs - 1))


def _half_cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * done))
