"""The frozen prefix of a network that learns: units that are as they are, and are answered for.

    latent  = the first k units of a sample, in serving's integers     engines/predict_network.py
    a_{k+1} = latent's codes and scale                                 what unit k + 1 learns from

The prefix is part of a version's weights and nothing else: int8 codes, scales and biases, which
exports carry on unchanged. Masters, moments, running statistics and heads are gone. These arrays
answer for it here, or a serving engine of the same weights does elsewhere (on an accelerator, say);
of that one's latents shape, codes and scale are checked, and the scale tells versions apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engines.base import PredictEngine
from engines.device import to_device, to_host
from engines.feature import Feature
from engines.fusion import Fusion
from engines.latent import Latent, latent_scale_name, latent_shape
from engines.precision import PRECISIONS
from engines.predict_network import PredictPrefix, as_rows
from engines.recipe import Recipe
from engines.rule import open_rule
from models import ModelSpec

_IN_STATE = "frozen."


class FrozenPrefix:
    """The first units of a network, which do not learn any more.

    Args:
        spec: The network.
        units: k, how many.
        arrays: Of a version's weights, or at least all of these units and of the network's input,
            named as in `engines.base.expected_arrays`; not copied, and not to be changed.
        serving: Answers for the units; None: the arrays do.
        fusion: Fuses the chains where the arrays answer.

    Raises:
        ValueError: There is no such prefix.
    """

    def __init__(
        self,
        spec: ModelSpec,
        units: int,
        arrays: Mapping[str, Tensor],
        serving: PredictEngine | None,
        fusion: Fusion,
    ) -> None:
        self._shape = latent_shape(spec, units)
        self._spec = spec
        self._fusion = fusion
        self.units = units
        self.serving = serving
        of_units = tuple(f"units.{index}." for index in range(units))
        self.arrays = {name: value for name, value in arrays.items() if name.startswith(of_units)}
        self._scale = arrays[latent_scale_name(spec, units)]
        self._scale_on_host = to_host(self._scale).copy()
        self._network = PredictPrefix(
            spec, arrays, open_rule(spec, Recipe()), PRECISIONS["int8"], fusion, units
        )

    def latent(self, x: NDArray[np.float32]) -> Latent:
        """See `TrainEngine.latent`."""
        if self.serving is not None:
            return self.serving.latent(x, self.units)
        rows = as_rows(x, self._spec, self._scale.device)
        codes, scale, _ = self._network.latent(rows, self.units)
        return Latent(to_host(codes), to_host(scale).copy())

    def feature(self, latent: Latent) -> Feature:
        """What the first unit that learns gets.

        Raises:
            ValueError: The latents are not of this prefix.
        """
        codes, scale = latent
        if codes.dtype != np.int8 or codes.shape[1:] != self._shape:
            raise ValueError(
                f"latents are {codes.dtype} {[*codes.shape[1:]]} per sample, the {self.units} "
                f"frozen units give int8 {[*self._shape]}"
            )
        if codes.min(initial=0) < -127:
            raise ValueError("latents hold the code -128, which is never used")
        if scale != self._scale_on_host:
            raise ValueError(
                f"latents have scale {scale}, those of the {self.units} frozen units "
                f"{self._scale_on_host.item()}: they were made by other weights"
            )
        # A copy: kept codes may be read-only, or a view.
        return Feature(to_device(np.array(codes, order="C"), self._scale.device), self._scale)

    def state(self) -> dict[str, Tensor]:
        """The frozen units in a training state; not copied."""
        return {_IN_STATE + name: value for name, value in self.arrays.items()}

    def loaded(self, state: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> FrozenPrefix:
        """The prefix as `state` has it, with the same to answer for it.

        Args:
            state: A training state, not copied.
            arrays: Of all else, as the constructor has them.
        """
        frozen = {name: state[_IN_STATE + name] for name in self.arrays}
        return FrozenPrefix(
            self._spec, self.units, {**arrays, **frozen}, self.serving, self._fusion
        )


def frozen_units(state: Iterable[str]) -> int:
    """How many units are frozen in a training state, by its names."""
    return len({name.split(".")[2] for name in state if name.startswith(_IN_STATE)})
