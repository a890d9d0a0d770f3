"""What a network answers: goodness per class, in the integers that were learned.

Every unit's input is quantized with the fixed scale that training recorded, not with the absmax of
the batch at hand, so that an answer does not depend on which requests it shares a batch with.

Which units judge is the rule's (engines/rule.py); the mean of their goodness decides. Under
`class_goodness` (adding log-softmaxes, as the recorded runs did, gives the same argmax: each unit's
logsumexp is the same for all classes) a sample passes once. Under `ff` it passes under each of the
C labels, and the goodness of a class is that under its label; the first layer's integer sums of a
sample are made once, and those of the labels once a version (engines/labels.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from engines.feature import Feature
from engines.fusion import Fusion
from engines.labels import accumulator_under_each_label
from engines.precision import Precision
from engines.predict_units import FirstUnit, open_predict_unit
from engines.rule import Rule
from engines.standardize import standardize
from models.spec import ModelSpec
from models.units import DenseUnitSpec

# Most rows that pass at a time, a sample under each label counting C: activities are float32.
_ROWS = 4096


def image_shape(spec: ModelSpec) -> tuple[int, ...] | None:
    """`[channels, height, width]` of a network of convolutions; None for dense units."""
    return None if isinstance(spec.units[0], DenseUnitSpec) else spec.input_shape


def channels_last(rows: Tensor, image: tuple[int, ...] | None) -> Tensor:
    """Samples as units have them: `[batch, features]` as they are, or as `[batch, H, W, C]`."""
    if image is None:
        return rows
    return rows.view(len(rows), *image).permute(0, 2, 3, 1).contiguous()


class PredictNetwork:
    """All units, first to last; no state, so several threads may ask.

    Args:
        spec: The network.
        arrays: Named as in `engines.base.expected_arrays`; not copied.
        rule: Heads, and what labels have to do with the input.
        precision: Arithmetic.
        fusion: Fuses the chains.
    """

    def __init__(
        self,
        spec: ModelSpec,
        arrays: Mapping[str, Tensor],
        rule: Rule,
        precision: Precision,
        fusion: Fusion,
    ) -> None:
        self._rule = rule
        self._precision = precision
        self._image = image_shape(spec)
        self._classes = spec.max_classes
        self._mean, self._std = arrays["input.mean"], arrays["input.std"]
        self._head = _named(arrays, "head.")
        first, *later = (
            open_predict_unit(unit, _named(arrays, f"units.{index}."), precision, fusion)
            for index, unit in enumerate(spec.units)
        )
        assert isinstance(first, FirstUnit)  # noqa: S101 - narrows the type
        self._first, self._later = first, later
        self._scale = arrays["units.0.input_scale" if self._image is None else "input.scale"]
        labels = rule.answers(precision, spec.units[0].input_shape, self._scale)
        self._of_labels = None if labels is None else first.accumulator(labels)

    def goodness(self, rows: Tensor) -> Tensor:
        """float32 `[batch, C]`; `rows`: `[batch, features]` in the sensor's own units."""
        if len(rows) == 0:
            return rows.new_empty(0, self._classes)
        most = _ROWS if self._of_labels is None else max(1, _ROWS // self._classes)
        return torch.cat([self._goodness(part) for part in torch.split(rows, most)])

    def _goodness(self, rows: Tensor) -> Tensor:
        standard = channels_last(standardize(rows, self._mean, self._std), self._image)
        codes = self._precision.quantize(self._rule.prepare(standard), self._scale)
        samples = Feature(codes, self._scale)
        sums = self._first.accumulator(self._rule.question(samples))
        if self._of_labels is not None:
            sums = accumulator_under_each_label(sums, self._of_labels)
        answered = self._first.answer(sums, self._scale)
        judged = self._judged(0, answered.activity)
        for index, unit in enumerate(self._later, start=1):
            answered = unit.forward(answered.output)
            judged += self._judged(index, answered.activity)
        # One by one: torch's sum over an outer axis takes another order in another batch.
        total = functools.reduce(torch.add, judged) / len(judged)
        return total.view(-1, self._classes)  # under labels a row has one goodness, C are a sample

    def _judged(self, index: int, activity: Tensor) -> list[Tensor]:
        if index not in self._rule.judges:
            return []
        return [self._rule.heads[index].goodness(activity, self._head)]


def _named(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in arrays.items() if name.startswith(prefix)}
