"""Squeeze-and-excitation: a gate per sample and channel, in float32, around an int8 activity.

    m = mean of h over pixels;  r = W1 m + b1;  t = W2 silu(r) + b2;  g = sigmoid(t)
    y = h g                     rounded to int8: g varies along the channels, which the next product
                                contracts, so it cannot be folded into a scale

(Hu et al. 2018, arXiv 1709.01507v4, eq. 2-4, with SiLU.) The two dense layers see one vector per
sample and are a thousandth of the network's products: they stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engines.feature import Feature, activation_slope
from engines.fusion import Fusion
from engines.precision import Accumulated, Precision, whole
from engines.serving_scale import ServingScale
from engines.unit import Gradients

PARAMETERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class Gate(NamedTuple):
    """A gate and what its gradient needs, float32.

    Args:
        mean: m, `[B, C]`.
        reduced: r, `[B, R]`.
        gate: g, `[B, C]`.
    """

    mean: Tensor
    reduced: Tensor
    gate: Tensor


class SqueezeExciteTrainLayer:
    """A gate that learns.

    Args:
        parameters: `PARAMETERS` by name, float32; moved by whoever gets the gradients.
        gradients: Where these go, under `name` and the parameter's name.
        name: Of the layer in the network.
        precision: Rounds the gated activity.
        fusion: Fuses the chains.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Gradients,
        name: str,
        precision: Precision,
        fusion: Fusion,
    ) -> None:
        self._parameters = parameters
        self._gradients = gradients
        self._name = name
        self._precision = precision
        self._apply = fusion.fuse(apply_gate)
        self._split_error = fusion.fuse(_split_error)
        self._join_error = fusion.fuse(_join_error)
        self._output_scale = ServingScale(parameters["fc1.bias"].device)
        self._kept: tuple[Feature, Gate] | None = None

    def forward(self, a: Feature) -> Feature:
        """The gated activity's codes; keeps what `backward` needs."""
        gate = squeeze(self._precision, a, self._parameters)
        codes, scale = self._apply(self._precision, a, gate.gate, None)
        self._output_scale.follow(scale)
        self._kept = a, gate
        return Feature(codes, scale)

    def backward(self, later: Accumulated, *, update: bool) -> Accumulated:
        """Gradient at the ungated activity, `[B, H, W, C]`.

        Args:
            later: Gradient at the gated activity.
            update: Hand in the parameters' gradients, and let go of what the forward pass kept.
        """
        if self._kept is None:
            raise RuntimeError("the layer has kept nothing: forward comes first")
        a, (mean, reduced, gate) = self._kept
        p = self._parameters
        grad_gate = self._split_error(self._precision, later, a)
        grad_t = grad_gate * gate * (1.0 - gate)  # [B, C]
        silu = reduced * torch.sigmoid(reduced)
        grad_r = (grad_t @ p["fc2.weight"]) * activation_slope(reduced, "silu")  # [B, R]
        if update:
            found = (grad_r.t() @ mean, grad_r.sum(dim=0), grad_t.t() @ silu, grad_t.sum(dim=0))
            for name, gradient in zip(PARAMETERS, found, strict=True):
                self._gradients[f"{self._name}.{name}"] = gradient
            self._kept = None
        grad_mean = grad_r @ p["fc1.weight"]  # [B, C]
        return whole(self._join_error(later, gate, grad_mean))

    def state(self) -> dict[str, Tensor]:
        """The serving scale; not copied. The parameters are saved by whoever moves them."""
        return {"output_scale": self._output_scale.value}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave."""
        self._output_scale.load(state["output_scale"])

    def export(self) -> dict[str, Tensor]:
        """Parameters and serving scale; not copied."""
        return {**self._parameters, "output_scale": self._output_scale.exported}


def squeeze(precision: Precision, a: Feature, parameters: Mapping[str, Tensor]) -> Gate:
    """The gate of an activity `[B, H, W, C]`.

    Its products are in float64: in float32 the order of their sums, and with it the last bit of an
    answer, depends on how many rows share a product.
    """
    p = {name: tensor.double() for name, tensor in parameters.items()}
    mean = a.dequantize(precision).mean(dim=(1, 2))
    reduced = torch.addmm(p["fc1.bias"], mean.double(), p["fc1.weight"].t())
    silu = reduced * torch.sigmoid(reduced)
    opened = torch.addmm(p["fc2.bias"], silu, p["fc2.weight"].t())
    return Gate(mean, reduced.float(), torch.sigmoid(opened).float())


def apply_gate(
    precision: Precision, a: Feature, gate: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes of the gated activity and their scale: `scale` where given, else from its absmax."""
    gated = a.dequantize(precision) * gate[:, None, None, :]
    if scale is None:
        scale = precision.scale(gated.abs().amax())
    return precision.quantize(gated, scale), scale


def _split_error(precision: Precision, later: Accumulated, a: Feature) -> Tensor:
    return (later.dequantize() * a.dequantize(precision)).sum(dim=(1, 2))


def _join_error(later: Accumulated, gate: Tensor, grad_mean: Tensor) -> Tensor:
    pixels = later.values.shape[1] * later.values.shape[2]
    through_mean = grad_mean[:, None, None, :] * (1.0 / pixels)
    return later.dequantize() * gate[:, None, None, :] + through_mean
