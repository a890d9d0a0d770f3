"""What an objective makes of a network: a head per unit, a loss, and what a batch becomes.

`class_goodness`, one pass: the samples as they are, and their class places.

`ff`, two passes (FF-INT8, arXiv 2506.22771v1, section III): each sample twice, with its right label
and with a wrong one (engines/labels.py), both passes in one batch.

Goodness under `ff`. The paper's is the sum of squares of a unit's activities, and theta = 2. How
long a unit's input is it does not say; taken here: 1, what is left of a row when Hinton (2022,
arXiv 2212.13345v1, section 2) has divided it by its length. Our rows of N inputs have a root mean
square of 1 instead, hence the length sqrt(N), and what follows from them is sqrt(N) times as large.
So

    sum     G = sum(y_i^2) / N       the paper's G, for an input of unit length     dense units
    mean    G = sum(y_i^2) / n       over n activities of a sample                  conv units

and theta = 2 means the same in both where N = n, as between units of equal width: a mean square
activity of 2, of which first weights (models/base.py) give 1. A convolution's sum would have 10^4
terms and more, for which no one theta serves; `auto` takes the mean there and the sum else.

Under `ff` the rows of a dense network are length-normalised before they get their labels: a
sample's own length would otherwise be goodness of the first unit, which says nothing of its label.

A label's place holds `label_value sqrt(N)`, with N channels of an image in place of N inputs, so
that a recipe fits samples of any size; Hinton's pixel of 1 in an MNIST digit, which is 9.2 long on
average, is a `label_value` of 0.11.

Hard negatives ask the network, as it would serve, for each sample's goodness under every label
before each step. With P multiplications a sample in all units and P_1 in the first, that takes
P_1 + C (P - P_1) beside the 6 P of a step with look-ahead: 6.0 P for 784-1000-1000 and 10 classes,
so the step's integer products double; on MNIST hard negatives gained 0.3 points (RECORDS.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from engines.dense import direction
from engines.feature import Feature
from engines.heads import GroupHead, Head, LinearHead, SquareHead
from engines.judging import judges_of, label_length
from engines.labels import (
    hard_wrong_labels,
    labels_alone,
    two_passes,
    without_label,
    wrong_labels,
)
from engines.objective import ClassGoodness, ForwardForward, Objective
from engines.precision import Precision
from engines.recipe import Recipe
from engines.rounding import NoiseKey
from models.spec import FORWARD_FORWARD, ModelSpec
from models.units import DenseUnitSpec, UnitSpec


class Batch(NamedTuple):
    """What the units of one step get.

    Args:
        rows: Input of the first unit, `[rows, N]` or NHWC.
        targets: What the objective compares their goodness with, `[rows]`.
        places: Class places that the loss of a row ranges over, bool `[rows, C]`; None: all, or
            the objective compares no classes.
    """

    rows: Feature
    targets: Tensor
    places: Tensor | None


class Draw(NamedTuple):
    """What wrong labels are drawn with.

    Args:
        classes: Class places in use, at least 2.
        key: Of the draw.
        goodness: The goodness of each of the batch's samples under each label, float32
            `[batch, C]`, as the network stands; None before its first step. Asked for at most once,
            and by hard negatives only.
    """

    classes: int
    key: NoiseKey
    goodness: Callable[[], Tensor | None]


class Rule(ABC):
    """See the module."""

    heads: tuple[Head, ...]
    objective: Objective
    judges: range

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """What is quantized of standardised samples, float32 `[batch, N]` or NHWC; its shape."""

    @abstractmethod
    def absmax(self, prepared: Tensor) -> Tensor:
        """What the one scale of the first unit's input has to hold, whatever the labels.

        Args:
            prepared: float32 `[batch, N]` or NHWC, of at least one sample.

        Returns:
            float32 `[]`.
        """

    @abstractmethod
    def batch(
        self,
        precision: Precision,
        samples: Feature,
        labels: Tensor,
        places: Tensor | None,
        draw: Draw,
    ) -> Batch:
        """What the units learn from.

        Args:
            precision: Arithmetic.
            samples: Codes of what `prepare` gave.
            labels: Class places, int64 `[batch]`.
            places: Those that a row is told apart from, bool `[batch, C]`; None: all that count.
            draw: For wrong labels.
        """

    @abstractmethod
    def question(self, samples: Feature) -> Feature:
        """The first unit's input for samples whose label is asked for."""

    @abstractmethod
    def answers(
        self, precision: Precision, shape: tuple[int, ...], scale: Tensor
    ) -> Feature | None:
        """The first unit's input for every label and no sample; None where labels are no input.

        Args:
            precision: Arithmetic.
            shape: Of one sample's input to the first unit, label places included.
            scale: float32 `[]`, that of the first unit's input.
        """


@dataclass(frozen=True)
class OnePass(Rule):
    """The rule of `class_goodness`.

    Args:
        heads: One a unit.
        objective: The loss on each unit's goodness.
        judges: Which units answer.
    """

    heads: tuple[Head, ...]
    objective: Objective
    judges: range

    def prepare(self, x: Tensor) -> Tensor:
        """The samples."""
        return x

    def absmax(self, prepared: Tensor) -> Tensor:
        """Their largest magnitude."""
        return prepared.abs().amax()

    def batch(
        self,
        precision: Precision,
        samples: Feature,
        labels: Tensor,
        places: Tensor | None,
        draw: Draw,
    ) -> Batch:
        """The samples and their class places."""
        return Batch(samples, labels, places)

    def question(self, samples: Feature) -> Feature:
        """The samples."""
        return samples

    def answers(
        self, precision: Precision, shape: tuple[int, ...], scale: Tensor
    ) -> Feature | None:
        """None."""
        return None


@dataclass(frozen=True)
class TwoPasses(Rule):
    """The rule of `ff`.

    Args:
        heads: One a unit.
        objective: The loss on each unit's goodness.
        judges: Which units answer.
        classes: C.
        label_value: What a label's place holds, see `engines.labels.append_labels`.
        hard: Draw wrong labels from the network's own goodness.
        normalize: Give each row a root mean square of 1.
    """

    heads: tuple[Head, ...]
    objective: Objective
    judges: range
    classes: int
    label_value: float
    hard: bool
    normalize: bool

    def prepare(self, x: Tensor) -> Tensor:
        """The samples, each with a root mean square of 1 where `normalize` says so."""
        return direction(x) if self.normalize else x

    def absmax(self, prepared: Tensor) -> Tensor:
        """The largest magnitude of the samples and of a label's place, which every row has."""
        return prepared.abs().amax().clamp_min(self.label_value)

    def batch(
        self,
        precision: Precision,
        samples: Feature,
        labels: Tensor,
        places: Tensor | None,
        draw: Draw,
    ) -> Batch:
        """Right label and wrong label, `[2 batch, ...]`; see `engines.labels.two_passes`."""
        goodness = draw.goodness() if self.hard else None
        if goodness is None:
            wrong = wrong_labels(labels, draw.classes, draw.key, places)
        elif places is None:
            wrong = hard_wrong_labels(goodness[:, : draw.classes], labels, draw.key)
        else:
            wrong = hard_wrong_labels(goodness, labels, draw.key, places)
        value = self._label_code(precision, samples.scale)
        codes, targets = two_passes(samples.codes, labels, wrong, self.classes, value)
        return Batch(Feature(codes, samples.scale), targets, None)

    def question(self, samples: Feature) -> Feature:
        """The samples with all label places at zero."""
        return Feature(without_label(samples.codes, self.classes), samples.scale)

    def answers(
        self, precision: Precision, shape: tuple[int, ...], scale: Tensor
    ) -> Feature | None:
        """`[C, *shape]`."""
        value = self._label_code(precision, scale)
        sample = value.new_zeros((*shape[:-1], shape[-1] - self.classes))
        return Feature(labels_alone(sample, self.classes, value), scale)

    def _label_code(self, precision: Precision, scale: Tensor) -> Tensor:
        return precision.quantize(scale.new_full((), self.label_value), scale)


def open_rule(spec: ModelSpec, recipe: Recipe) -> Rule:
    """The rule of a network.

    Under `class_goodness` dense units have groups of activities, units made of convolutions a
    linear head each, which finds its own sharpness.
    """
    units = len(spec.units)
    classes, dense = spec.max_classes, isinstance(spec.units[0], DenseUnitSpec)
    if spec.objective == FORWARD_FORWARD:
        return TwoPasses(
            heads=tuple(_square_head(unit, recipe.goodness) for unit in spec.units),
            objective=ForwardForward(recipe.threshold),
            judges=judges_of(spec),
            classes=classes,
            label_value=label_length(spec, recipe.label_value),
            hard=recipe.negatives == "hard",
            normalize=dense,
        )
    if dense:
        groups = GroupHead(classes)
        return OnePass((groups,) * units, ClassGoodness(classes), judges_of(spec))
    linear = tuple(LinearHead(classes, unit.output_shape) for unit in spec.units)
    return OnePass(linear, ClassGoodness(classes, alpha=1.0), judges_of(spec))


def _square_head(unit: UnitSpec, goodness: str) -> SquareHead:
    """See the module.

    Raises:
        ValueError: The sum is asked of a convolution.
    """
    if isinstance(unit, DenseUnitSpec):
        if goodness == "mean":
            return SquareHead("mean")
        return SquareHead("sum", unit.linear.inputs)
    if goodness == "sum":
        raise ValueError(
            "goodness 'sum' of a convolution adds up 10^4 activities and more, which no one "
            "threshold fits; wanted 'mean' or 'auto'"
        )
    return SquareHead("mean")
