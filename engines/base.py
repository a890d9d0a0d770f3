"""What crosses between the service and the numeric side: arrays, `Weights`, and two interfaces.

No torch here: a process that serves through another engine must not load it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engines.latent import Latent
from models import ModelSpec
from models.layers import Layer, SqueezeExciteSpec
from models.pooling import pooled_shape
from models.units import DenseUnitSpec

Label = int | str


class WeightsError(ValueError):
    """Weights do not fit their model, or hold values that no healthy network has."""


class NonFiniteWeightsError(WeightsError):
    """Weights hold a value that is no number."""


class EngineUnavailableError(RuntimeError):
    """An engine, or none at all, cannot serve here; the message says why."""


class EngineFailedError(RuntimeError):
    """An engine did not answer this time, for want of memory or by a fault of the device."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """One immutable version of a network, in the only form in which weights travel.

    Args:
        spec: The network's shape.
        classes: Label of each class place in use, in order; at most `spec.max_classes`.
        arrays: Name to array; `expected_arrays` says which names, dtypes and shapes.
        version: Its number; grows, never reused for another accepted version.
        parent: The version that learning went on from, None for the first.
        last_seq: Highest sample sequence number learned from; 0 for none.
    """

    spec: ModelSpec
    classes: tuple[Label, ...]
    arrays: Mapping[str, NDArray[np.generic]]
    version: int
    parent: int | None = None
    last_seq: int = 0

    def check(self) -> None:
        """Refuse weights that must not serve.

        Raises:
            WeightsError: A name, dtype or shape differs from what the model needs, a value is not
                finite, a scale is not positive, or a code is -128.
        """
        if len(self.classes) > self.spec.max_classes:
            raise WeightsError(f"{len(self.classes)} classes, places for {self.spec.max_classes}")
        expected = expected_arrays(self.spec)
        if self.arrays.keys() != expected.keys():
            difference = sorted(self.arrays.keys() ^ expected.keys())
            raise WeightsError(f"arrays missing or not expected: {', '.join(difference)}")
        for name, (dtype, shape) in expected.items():
            array = self.arrays[name]
            if array.dtype != dtype or array.shape != shape:
                raise WeightsError(
                    f"array {name!r} is {array.dtype} {[*array.shape]}, "
                    f"the model needs {np.dtype(dtype)} {[*shape]}"
                )
            if array.dtype == np.int8:
                if array.min() < -127:
                    raise WeightsError(f"array {name!r} holds the code -128, which is never used")
            elif not np.isfinite(array).all():
                raise NonFiniteWeightsError(f"array {name!r} holds a value that is not finite")
            if name.endswith(("scale", "input.std", "label_value")) and array.min() <= 0:
                what = "value" if name.endswith("value") else "scale"
                raise WeightsError(f"array {name!r} holds a {what} that is not positive")


CANARY_ROWS = 16
# Standard deviations: what lies beyond, of any input, is cut off (engines/standardize.py).
INPUT_CLIP = 4.0


def expected_arrays(spec: ModelSpec) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Name to dtype and shape of every array in a version's weights.

    `input.mean`, `input.std`: per-feature standardisation. `canary.*`: a batch and the goodness
    that the learner computed for it, for any engine to check itself by. Per unit, under `units.N.`:

    Dense: int8 codes `[out, in]`, their scales `[out, 1]`, the bias `[out]` and the scale of the
    unit's int8 input `[]`. Made of convolutions: for each layer int8 codes `[O, k k C]`, scales
    `[O, 1]` and bias `[O]` with the batch norm folded in, and the scale of its int8 output `[]`;
    for a gate its float32 parameters and an output scale; for a sum an output scale. Then also
    `input.scale`, of the network's int8 input, and `head.weight` `[C, features]`, `head.bias` `[C]`
    of the last unit's head, which judges. Where labels are an input, `input.label_value` `[]`, how
    long a label is beside its sample, and no head.
    """
    arrays: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "input.mean": (np.float32, (spec.features,)),
        "input.std": (np.float32, (spec.features,)),
        "canary.input": (np.float32, (CANARY_ROWS, spec.features)),
        "canary.goodness": (np.float32, (CANARY_ROWS, spec.max_classes)),
    }
    for index, unit in enumerate(spec.units):
        name = f"units.{index}"
        if isinstance(unit, DenseUnitSpec):
            arrays |= _product_arrays(name, unit.linear)
            arrays[f"{name}.input_scale"] = (np.float32, ())
            continue
        for part, layer in unit.parts.items():
            if isinstance(layer, SqueezeExciteSpec):
                for fc, shape in (
                    ("fc1", (layer.reduced, layer.channels)),
                    ("fc2", (layer.channels, layer.reduced)),
                ):
                    arrays[f"{name}.{part}.{fc}.weight"] = (np.float32, shape)
                    arrays[f"{name}.{part}.{fc}.bias"] = (np.float32, shape[:1])
            else:
                arrays |= _product_arrays(f"{name}.{part}", layer)
            arrays[f"{name}.{part}.output_scale"] = (np.float32, ())
        if unit.adds:
            arrays[f"{name}.sum.output_scale"] = (np.float32, ())
    last = spec.units[-1]
    if not isinstance(last, DenseUnitSpec):
        features = math.prod(pooled_shape(last.output_shape))
        arrays["input.scale"] = (np.float32, ())
        if not spec.label_places:
            arrays["head.weight"] = (np.float32, (spec.max_classes, features))
            arrays["head.bias"] = (np.float32, (spec.max_classes,))
    if spec.label_places:
        arrays["input.label_value"] = (np.float32, ())
    return arrays


def _product_arrays(name: str, layer: Layer) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    rows, _ = layer.weight_shape
    return {
        f"{name}.weight.codes": (np.int8, layer.weight_shape),
        f"{name}.weight.scale": (np.float32, (rows, 1)),
        f"{name}.bias": (np.float32, (rows,)),
    }


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Answers for a batch.

    Args:
        class_index: int64 `[batch]`, among the classes in use; -1 where none is in use yet.
        goodness: float32 `[batch, max_classes]`, every class place; the answer is the argmax over
            those in use.
    """

    class_index: NDArray[np.int64]
    goodness: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one training step saw.

    Args:
        losses: Own loss of each unit that learns, before the update, mean over the batch.
    """

    losses: tuple[float, ...]

    @property
    def finite(self) -> bool:
        """Whether every loss is a number."""
        return bool(np.isfinite(self.losses).all())


class PredictEngine(ABC):
    """Answers from one version of the weights, and never changes."""

    @abstractmethod
    def predict(self, x: NDArray[np.float32]) -> Prediction:
        """Goodness and class of each sample; an answer does not depend on the rest of its batch.

        Args:
            x: float32 `[batch, *input_shape]` in the sensor's own units; not changed.

        Raises:
            ValueError: The shape is not the model's, or a value is not finite.
            EngineFailedError: No answer this time: memory ran out, or the device failed.
        """

    @abstractmethod
    def latent(self, x: NDArray[np.float32], units: int) -> Latent:
        """The int8 output of the first `units` units; a row does not depend on the others.

        The codes are made with a scale of the version's own weights, that which `predict` makes
        them with: the `output_scale` of the prefix's last sum or layer; between dense units the
        `input_scale` of the unit behind it. A back end that fuses units has to cut here.

        Args:
            x: float32 `[batch, *input_shape]` in the sensor's own units; not changed.
            units: From 1 to one less than there are.

        Raises:
            ValueError: As `predict`; or there is no such prefix, see `latent_shape`.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; nothing is predicted after. Twice is harmless."""

    def __enter__(self) -> PredictEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TrainEngine(ABC):
    """A network that learns."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs and why, for the log: back end, arithmetic, masters, fused or not."""

    @abstractmethod
    def train_step(
        self,
        x: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        learning_rate: float,
        look_ahead_weight: float,
        places: NDArray[np.bool_] | None = None,
    ) -> StepReport:
        """One update of every unit that is not frozen; none when a loss is not finite.

        Args:
            x: float32 `[batch, *input_shape]`; not changed.
            labels: int64 `[batch]`, class places.
            learning_rate: Step size of the optimizer.
            look_ahead_weight: lambda of Eq. 3-4.
            places: Class places that a row is told apart from in every unit's loss, bool
                `[batch, max_classes]`, its label's own among them; None: all. What is left out gets
                no gradient from the row, and a row with no place but its own teaches nothing (see
                engines/targets.py). Not changed.

        Raises:
            ValueError: A shape or dtype is wrong, a value is not finite, a label lies outside the
                class places, or its own is not among its row's.
        """

    @abstractmethod
    def freeze(self, units: int, serving: PredictEngine | None = None) -> None:
        """From now on the first `units` units are as they are, and only those behind them learn.

        What moved the frozen units, their masters and their optimizer's state, is dropped. They are
        answered for with their serving scales and running statistics, so that what is learned from
        is what a served version will see. More may be frozen later, never fewer. An engine resumes
        by being opened, frozen as far as it was, and given the state.

        Args:
            units: How many, from 1 to one less than there are.
            serving: Answers for the frozen units, and stays open until another does; an engine
                of weights that were exported since they last changed. None: this engine itself.

        Raises:
            ValueError: There is no such prefix, see `latent_shape`; more are frozen already; or the
                precision is not int8.
        """

    @abstractmethod
    def latent(self, x: NDArray[np.float32]) -> Latent:
        """What the frozen units make of `x`, for `train_latent_step`, now or later.

        Args:
            x: float32 `[batch, *input_shape]`; not changed.

        Raises:
            RuntimeError: No unit is frozen.
            ValueError: The shape is not the model's, or a value is not finite.
        """

    @abstractmethod
    def train_latent_step(
        self,
        latent: Latent,
        labels: NDArray[np.int64],
        *,
        learning_rate: float,
        look_ahead_weight: float,
        places: NDArray[np.bool_] | None = None,
    ) -> StepReport:
        """A `train_step`, to the same bits, on the samples that the latents were made of.

        Rows may be taken from several latents of one prefix; no unit of the prefix runs.

        Args:
            latent: Of `batch` rows; not changed.
            labels: int64 `[batch]`, class places.
            learning_rate: Step size of the optimizer.
            look_ahead_weight: lambda of Eq. 3-4.
            places: As `train_step` has them.

        Raises:
            RuntimeError: No unit is frozen.
            ValueError: As `train_step`; or the latents are not of this prefix, as far as their
                shape and scale show.
        """

    @abstractmethod
    def standardize_from(
        self, x: NDArray[np.float32], features: NDArray[np.bool_] | None = None
    ) -> None:
        """Take the input mean and standard deviation from samples.

        Args:
            x: float32 `[batch, *input_shape]`.
            features: For which; of channels, where there are further axes, bool
                `[input_shape[0]]`. None: for all.

        Raises:
            RuntimeError: Units are frozen, which know no other input than they had.
        """

    @abstractmethod
    def export(
        self, *, classes: tuple[Label, ...], version: int, parent: int | None, last_seq: int
    ) -> Weights:
        """The weights as they stand, codes and scales copied, canary included."""

    @abstractmethod
    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on."""

    @abstractmethod
    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from `state`: the next step has the same bits as if nothing had happened.

        Seed and precision are the constructor's, and must be those that `state` was made with.

        Raises:
            WeightsError: The state is of another network, or of another number of frozen units.
        """
