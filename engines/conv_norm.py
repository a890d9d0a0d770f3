"""A convolution and its batch norm as the engines run them.

With `c` the integer sums, `s = s_A s_W` their scales (one per output channel) and statistics over
batch and pixels (Ioffe & Szegedy 2015, arXiv 1502.03167v3, algorithm 1):

    u = s c                                       what the convolution gives
    z = gamma (u - mean(u)) / sqrt(var(u) + eps) + beta = A c + B      per channel
    codes of z                                    kept, and what the next layer gets

Two passes over the sums. The first takes mean, variance, least and largest of each channel; since z
is affine in c, the last two give z's absmax, and so its scale, before any z is computed. The second
computes z and rounds it.

Backward, from the kept codes alone: `x_hat = (z - beta) / gamma` (Bulo et al. 2018, arXiv
1712.02616v3, section 3.1, inverts the norm so), and with dz the error at z

    dbeta = sum dz;   dgamma = sum dz x_hat
    du    = gamma / sqrt(var + eps) (dz - dbeta / n - x_hat dgamma / n)

du is rounded per output channel for the weight gradient, and, times the weights' scales, per sample
for the input gradient. The window of the input gradient mixes pixels, so no finer scale is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.conv_products import ConvProducts
from engines.feature import Feature, activation_slope
from engines.fusion import Fusion
from engines.int8 import QTensor
from engines.masters import Masters
from engines.precision import Accumulated, Precision
from engines.rounding import Noise, draws, noise
from engines.serving_scale import ServingScale
from engines.unit import Gradients, Step
from models.layers import BATCH_NORM_EPSILON, ConvLayer

# Of torch's BatchNorm2d: how fast the running statistics follow the batches.
_STATISTICS_MOMENTUM = 0.1
# A channel whose gamma is smaller says nothing about x_hat any more.
_SMALLEST_GAMMA = 1e-3


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
        self._normalize = fusion.fuse(_normalize)
        self._norm_sums = fusion.fuse(_norm_sums)
        self._errors = fusion.fuse(_errors)
        self._mean = torch.zeros(layer.out_channels)
        self._var = torch.ones(layer.out_channels)
        self._output_scale = ServingScale()
        self._kept: tuple[Feature, Feature, Tensor] | None = None

    def forward(self, a: Feature) -> Feature:
        """The pre-activation's codes and the activation to apply; keeps what `backward` needs."""
        weight = self._masters.weight
        sums = self._products.forward(a, weight.codes)
        codes, scale, mean, var, inverse = self._normalize(
            self._precision,
            Accumulated(sums, a.scale * weight.scale[:, 0]),
            self._gamma,
            self._beta,
        )
        count = sums.numel() // sums.shape[-1]
        self._mean.lerp_(mean, _STATISTICS_MOMENTUM)
        self._var.lerp_(var * (count / max(1, count - 1)), _STATISTICS_MOMENTUM)
        self._output_scale.follow(scale)
        output = Feature(codes, scale, self._layer.activation)
        self._kept = a, output, inverse
        return output

    def backward(
        self, later: Accumulated, step: Step, *, update: bool, propagate: bool
    ) -> Accumulated | None:
        """Back-propagate through norm and convolution.

        Args:
            later: Gradient at the activity (behind the activation), `[B, Ho, Wo, O]`.
            step: Names the rounding noise.
            update: Learn from it.
            propagate: Return the gradient at the input activity, `[B, H, W, C]`.
        """
        if self._kept is None:
            raise RuntimeError("the layer has kept nothing: forward comes first")
        a, output, inverse = self._kept
        weight = self._masters.weight
        unit, layer = self._place
        dbeta, dgamma = self._norm_sums(later, output, self._gamma, self._beta)
        by_channel, by_sample = self._errors(
            self._precision,
            later,
            output,
            self._gamma,
            self._beta,
            inverse,
            dbeta,
            dgamma,
            weight.scale[:, 0],
            noise(
                later.values.shape[:-1].numel(), self._layer.out_channels, step.key(unit, layer, 0)
            ),
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
        if by_sample is None:
            return None
        values = self._products.grad_input(by_sample.codes, weight.codes)
        return Accumulated(values, by_sample.scale)

    def release(self) -> None:
        """Let go of what the forward pass kept."""
        self._kept = None

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


def _normalize(
    precision: Precision, sums: Accumulated, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes and scale of z; mean, variance (of u, biased) and 1 / sqrt(var + eps) per channel."""
    c = sums.values.to(torch.float32)
    mean = c.mean(dim=(0, 1, 2))
    square = c.square().mean(dim=(0, 1, 2))
    low, high = c.amin(dim=(0, 1, 2)), c.amax(dim=(0, 1, 2))
    var = (square - mean.square()).clamp_min(0.0) * sums.scale.square()
    inverse = (var + BATCH_NORM_EPSILON).rsqrt()
    factor = gamma * inverse * sums.scale
    shift = beta - factor * mean
    absmax = torch.maximum((factor * low + shift).abs(), (factor * high + shift).abs()).amax()
    scale = precision.scale(absmax)
    codes = precision.quantize(c * factor + shift, scale)
    return codes, scale, mean * sums.scale, var, inverse


def _at_norm(
    later: Accumulated, output: Feature, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """dz, and x_hat from the codes."""
    z = output.codes * output.scale
    dz = later.dequantize() * activation_slope(z, output.activation)
    return dz, (z - beta) * _reciprocal(gamma)


def _reciprocal(gamma: Tensor) -> Tensor:
    kept = gamma.abs() >= _SMALLEST_GAMMA
    return torch.where(kept, 1.0 / torch.where(kept, gamma, 1.0), 0.0)


def _norm_sums(
    later: Accumulated, output: Feature, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    dz, x_hat = _at_norm(later, output, gamma, beta)
    return dz.sum(dim=(0, 1, 2)), (dz * x_hat).sum(dim=(0, 1, 2))


def _errors(
    precision: Precision,
    later: Accumulated,
    output: Feature,
    gamma: Tensor,
    beta: Tensor,
    inverse: Tensor,
    dbeta: Tensor,
    dgamma: Tensor,
    weight_scale: Tensor,
    randomness: Noise,
    update: bool,
    propagate: bool,
) -> tuple[QTensor | None, QTensor | None]:
    """du, rounded once for each product that takes it."""
    dz, x_hat = _at_norm(later, output, gamma, beta)
    count = dz.numel() // dz.shape[-1]
    du = (gamma * inverse) * (dz - dbeta / count - x_hat * (dgamma / count))
    u1, u2 = draws(randomness.words().view(dz.shape))
    by_channel = by_sample = None
    if update:
        scale = precision.scale(du.abs().amax(dim=(0, 1, 2)))
        by_channel = QTensor(precision.quantize(du, scale, u1), scale)
    if propagate:
        folded = du * weight_scale
        scale = precision.scale(folded.abs().amax(dim=(1, 2, 3), keepdim=True))
        by_sample = QTensor(precision.quantize(folded, scale, u2), scale)
    return by_channel, by_sample
