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
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.batch import check_input
from engines.device import to_device
from engines.feature import Feature
from engines.fusion import Fusion
from engines.labels import accumulator_under_each_label
from engines.precision import Precision
from engines.predict_units import Answered, FirstUnit, open_predict_unit
from engines.rule import Rule
from engines.standardize import standardize
from models.spec import ModelSpec
from models.units import DenseUnitSpec

# What the largest layer gives, in float32, for the rows that pass at a time; a few temporaries of
# that size are alive at once. Smaller parts take longer; so do larger ones, whose chains leave the
# cache (4096 rows of 784-1000-1000-1000 at once: 470 ms, in parts of 524: 264 ms).
_PART_BYTES = 2**21
_FLOAT_BYTES = 4


def as_rows(x: NDArray[np.float32], spec: ModelSpec, device: torch.device | str) -> Tensor:
    """A batch `[batch, *input_shape]` as float32 `[batch, features]` on a device, copied.

    Raises:
        ValueError: The shape is not the model's, or a value is not finite.
    """
    check_input(x, spec)
    return to_device(np.array(x, dtype=np.float32).reshape(len(x), spec.features), device)


def image_shape(spec: ModelSpec) -> tuple[int, ...] | None:
    """`[channels, height, width]` of a network of convolutions; None for dense units."""
    return None if isinstance(spec.units[0], DenseUnitSpec) else spec.input_shape


def channels_last(rows: Tensor, image: tuple[int, ...] | None) -> Tensor:
    """Samples as units have them: `[batch, features]` as they are, or as `[batch, H, W, C]`."""
    if image is None:
        return rows
    return rows.view(len(rows), *image).permute(0, 2, 3, 1).contiguous()


class PredictPrefix:
    """The first units of a network, which may be all; no state, so several threads may ask.

    Args:
        spec: The network.
        arrays: Of these units, and what latents behind them are made with, named as in
            `engines.base.expected_arrays`; not copied.
        rule: What labels have to do with the input.
        precision: Arithmetic.
        fusion: Fuses the chains.
        units: How many.
    """

    def __init__(
        self,
        spec: ModelSpec,
        arrays: Mapping[str, Tensor],
        rule: Rule,
        precision: Precision,
        fusion: Fusion,
        units: int,
    ) -> None:
        self._rule = rule
        self._precision = precision
        self._image = image_shape(spec)
        self._mean, self._std = arrays["input.mean"], arrays["input.std"]
        first, *later = (
            open_predict_unit(unit, _named(arrays, f"units.{index}."), precision, fusion)
            for index, unit in enumerate(spec.units[:units])
        )
        assert isinstance(first, FirstUnit)  # noqa: S101 - narrows the type
        self._first, self._later = first, later
        # Where the next unit quantizes its input.
        self._input_scales = {
            index: arrays[name]
            for index in range(len(spec.units))
            if (name := f"units.{index}.input_scale") in arrays
        }
        self._scale = arrays["input.scale"] if self._image else self._input_scales[0]
        labels = rule.answers(precision, spec.units[0].input_shape, self._scale)
        self._of_labels = None if labels is None else first.accumulator(labels)
        largest = max(
            layer.macs // layer.contraction
            for unit in spec.units[:units]
            for layer in unit.layers.values()
        )
        passes = 1 if labels is None else spec.max_classes
        self._most = max(1, _PART_BYTES // (_FLOAT_BYTES * largest * passes))

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows in as many as may pass at a time."""
        return torch.split(rows, self._most)

    def answers(self, rows: Tensor) -> Iterator[Answered]:
        """What each unit gives, for float32 `[batch, features]` in the sensor's own units."""
        standard = channels_last(standardize(rows, self._mean, self._std), self._image)
        codes = self._precision.quantize(self._rule.prepare(standard), self._scale)
        samples = Feature(codes, self._scale)
        sums = self._first.accumulator(self._rule.question(samples))
        if self._of_labels is not None:
            sums = accumulator_under_each_label(sums, self._of_labels)
        answered = self._first.answer(sums, self._scale)
        yield answered
        for unit in self._later:
            answered = unit.forward(answered.output)
            yield answered

    def latent(self, rows: Tensor, units: int) -> Feature:
        """Codes of what unit `units` gets, which this prefix need not have itself."""
        features = [self._latent(part, units) for part in self.parts(rows)]
        return Feature(torch.cat([feature.codes for feature in features]), features[0].scale)

    def _latent(self, rows: Tensor, units: int) -> Feature:
        output = next(itertools.islice(self.answers(rows), units - 1, None)).output
        if isinstance(output, Feature):
            return Feature(output.operand(self._precision), output.scale)
        scale = self._input_scales[units]
        return Feature(self._precision.quantize(output, scale), scale)


class PredictNetwork:
    """All units, first to last, and what they answer together; no state either.

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
        self.units = PredictPrefix(spec, arrays, rule, precision, fusion, len(spec.units))
        self._rule = rule
        self._classes = spec.max_classes
        self._head = _named(arrays, "head.")

    def goodness(self, rows: Tensor) -> Tensor:
        """float32 `[batch, C]` of float32 `[batch, features]` in the sensor's own units."""
        if len(rows) == 0:
            return rows.new_empty(0, self._classes)
        return torch.cat([self._goodness(part) for part in self.units.parts(rows)])

    def _goodness(self, rows: Tensor) -> Tensor:
        judged = [
            self._rule.heads[index].goodness(answered.activity, self._head)
            for index, answered in enumerate(self.units.answers(rows))
            if index in self._rule.judges
        ]
        # One by one: torch's sum over an outer axis takes another order in another batch.
        total = functools.reduce(torch.add, judged) / len(judged)
        return total.view(-1, self._classes)  # under labels a row has one goodness, C are a sample


def _named(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in arrays.items() if name.startswith(prefix)}
