"""A convolution and its batch norm as the engines run them.

With `c` the integer sums, `s = s_A s_W` their scales (one per output channel) and statistics over
batch and pixels (Ioffe & Szegedy 2015, arXiv 1502.03167v3, algorithm 1):

    u = s c                                                         what the convolution gives
    z = gamma (u - mean(u)) / sqrt(var(u) + eps) + beta = f c + t   f, t per channel
    codes q of z, of scale s_z                                      kept; what the next layer gets

Two passes over the sums. The first takes mean, variance, least and largest of each channel; since z
is affine in c, the last two give z's absmax, and so its scale, before any z is computed. The second
computes z in steps of that scale and rounds it.

Backward, from the kept codes alone: `x_hat = (z - beta) / gamma = m q + k` (Bulo et al. 2018, arXiv
1712.02616v3, section 3.1, inverts the norm so), and with dz the error at z, n elements a channel

    dbeta = sum dz;   dgamma = sum dz x_hat = m sum dz q + k dbeta
    du    = gamma / sqrt(var + eps) (dz - dbeta / n - x_hat dgamma / n) = A dz + B + C q

du is rounded per output channel for the weight gradient, and, times the weights' scales, per sample
for the input gradient. The window of the input gradient mixes pixels, so no finer scale is allowed.
Three passes over error and codes: the two sums; how far du reaches; rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.conv_products import ConvProducts
from engines.feature import Feature
from engines.fusion import Fusion
from engines.masters import Masters
from engines.norm_passes import errors, normalize
from engines.precision import Accumulated, Precision
from engines.rounding import noise
from engines.serving_scale import ServingScale
from engines.unit import Gradients, Step
from models.layers import BATCH_NORM_EPSILON, ConvLayer

# Of torch's BatchNorm2d: how fast the running statistics follow the batches.
_STATISTICS_MOMENTUM = 0.1


class ConvNormTrainLayer:
    """A convolution with batch norm that learns.

    Args:
        layer: Sizes and activation.
        place: Unit and layer number, for the rounding noise.
        masters: Of the weights.
        gamma: float32 `[O]`; moved by whoever gets the gradient.
        beta: float32 `[O]`, likewise.
        gradients: Where the gradients of gamma and beta go, as `name.gamma` and `name.beta`.
        name: Of the layer in the network.
        products: The three products.
        precision: Arithmetic.
        fusion: Fuses the chains.
    """

    def __init__(
        self,
        layer: ConvLayer,
        place: tuple[int, int],
        masters: Masters,
        gamma: Tensor,
        beta: Tensor,
        gradients: Gradients,
        name: str,
        products: ConvProducts,
        precision: Precision,
        fusion: Fusion,
    ) -> None:
        self._layer = layer
        self._place = place
        self._masters = masters
        self._gamma = gamma
        self._beta = beta
        self._gradients = gradients
        self._name = name
        self._products = products
        self._precision = precision
        self._normalize = fusion.fuse(normalize)
        self._errors = fusion.fuse(errors)
        self._mean = torch.zeros_like(gamma)
        self._var = torch.ones_like(gamma)
        self._output_scale = ServingScale(gamma.device)
        self._kept: tuple[Feature, Feature, Tensor] | None = None

    def forward(self, a: Feature) -> Feature:
        """The pre-activation's codes and the activation to apply; keeps what `backward` needs."""
        weight = self._masters.weight
        sums = self._products.forward(a, weight.codes)
        output, inverse, mean, var = self._normalize(
            self._precision,
            Accumulated(sums, a.scale * weight.scale[:, 0]),
            self._gamma,
            self._beta,
            self._layer.activation,
        )
        count = sums.numel() // sums.shape[-1]
        self._mean.lerp_(mean, _STATISTICS_MOMENTUM)
        self._var.lerp_(var * (count / max(1, count - 1)), _STATISTICS_MOMENTUM)
        self._output_scale.follow(output.scale)
        self._kept = a, output, inverse
        return output

    def backward(
        self, later: Accumulated, step: Step, *, update: bool, propagate: bool
    ) -> Accumulated | None:
        """Back-propagate through norm and convolution.

        Args:
            later: Gradient at the activity (behind the activation), `[B, Ho, Wo, O]`.
            step: Names the rounding noise.
            update: Learn from it, and let go of what the forward pass kept.
            propagate: Return the gradient at the input activity, `[B, H, W, C]`.
        """
        if self._kept is None:
            raise RuntimeError("the layer has kept nothing: forward comes first")
        a, output, inverse = self._kept
        weight = self._masters.weight
        unit, layer = self._place
        rows = later.values.numel() // self._layer.out_channels
        by_channel, by_sample, dgamma, dbeta = self._errors(
            self._precision,
            later,
            output,
            (self._gamma, self._beta, inverse),
            weight.scale[:, 0],
            noise(rows, len(self._gamma), step.key(unit, layer, 0), self._gamma.device),
            update,
            propagate,
        )
        # The step makes new codes and leaves the old ones, through which the error is passed on; in
        # this order the two products may use the same memory for their sums.
        if by_channel is not None:
            values = self._products.grad_weight(by_channel.codes, a)
            gradient = Accumulated(values, by_channel.scale[:, None] * a.scale)
            self._masters.step(gradient, step.key(unit, layer, 1), step.learning_rate)
            self._gradients[f"{self._name}.gamma"] = dgamma
            self._gradients[f"{self._name}.beta"] = dbeta
            self._kept = by_channel = None
        if by_sample is None:
            return None
        values = self._products.grad_input(by_sample.codes, weight.codes)
        return Accumulated(values, by_sample.scale)

    def state(self) -> dict[str, Tensor]:
        """Masters, optimizer state, running statistics and serving scale; not copied."""
        masters = {f"weight.{name}": value for name, value in self._masters.state().items()}
        return masters | {
            "mean": self._mean,
            "var": self._var,
            "output_scale": self._output_scale.value,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave."""
        prefix = "weight."
        self._masters.load_state(
            {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        )
        self._mean.copy_(state["mean"])
        self._var.copy_(state["var"])
        self._output_scale.load(state["output_scale"])

    def export(self) -> dict[str, Tensor]:
        """The norm folded into scale and bias, with the running statistics.

        `z = A c + B` has `A = gamma s_W / sqrt(var + eps)` (times the input's scale when served).
        A scale is positive: where gamma is not, the codes change sign, which is exact.
        """
        weight = self._masters.weight
        factor = self._gamma / (self._var + BATCH_NORM_EPSILON).sqrt()
        sign = torch.where(factor < 0, -1, 1).to(weight.codes.dtype)
        scale = (factor.abs() * weight.scale[:, 0]).clamp_min(1e-30)
        return {
            "weight.codes": weight.codes * sign[:, None],
            "weight.scale": scale[:, None],
            "bias": self._beta - self._mean * factor,
            "output_scale": self._output_scale.exported,
        }
