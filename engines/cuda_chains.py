"""Which chains run in kernels of our own on a CUDA device without torch.compile.

The table below is all of it: a chain that it does not name runs op by op, and so does a call whose
arguments the kernels do not know (the float twin, a silu, sums in int64): the chain itself is then
called, which gives the same bits. Between the passes that kernels take, what is one number a row or
a channel is computed by the functions that the chains use, too.

Chosen are the passes over what is large: a dense unit's sums and errors, the weights at a step, the
sums and errors of a convolution before its norm. Run op by op, each of some twenty links reads and
writes them in float32; here they are read once or twice as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import engines.cuda_conv_kernels as conv_kernels
import engines.cuda_kernels as kernels
from engines import code_step, dense, depthwise, masters, norm_passes
from engines.cuda_driver import CudaDriver
from engines.cuda_launch import Launcher
from engines.feature import Feature
from engines.int8 import QTensor
from engines.precision import Accumulated, Precision
from engines.rounding import Noise
from models.layers import LENGTH_EPSILON

Chain = Callable[..., Any]


def open_chains(cache: Path, device: int = 0) -> dict[Chain, Chain]:
    """Chains in kernels on a CUDA device: what `engines.fusion.open_fusion` asks for.

    Args:
        cache: Folder for compiled kernels; made if missing.
        device: Number of the device, torch's current one.

    Raises:
        KernelsUnavailableError: They cannot be had; the message says why.
    """
    return kernel_chains(Launcher(CudaDriver(cache, device)))


def kernel_chains(on: Launcher) -> dict[Chain, Chain]:
    """Chains by what they stand in for; see the module."""

    def with_kernels(chain: Chain, known: Callable[..., bool], fast: Callable[..., Any]) -> Chain:
        def run(*arguments: Any) -> Any:  # noqa: ANN401 - a chain's
            return fast(on, *arguments) if known(*arguments) else chain(*arguments)

        return run

    table = (
        (dense.forward, _is_int8, _dense_forward),
        (dense.backward, _is_int8, _dense_backward),
        (masters.requantize, _is_int8, _requantize),
        (code_step.refreshed_columns, _in_int32, _refreshed_columns),
        (code_step.adam_step, _in_int32, _adam_step),
        (code_step.sgd_step, _in_int32, _sgd_step),
        (norm_passes.normalize, _is_int8, _normalize),
        (norm_passes.errors, _norm_errors_known, _norm_errors),
        (depthwise.forward, _always, conv_kernels.depthwise),
    )
    return {chain: with_kernels(chain, known, fast) for chain, known, fast in table}


def _always(*arguments: object) -> bool:
    return True


def _is_int8(precision: Precision, *arguments: object) -> bool:
    return precision.name == "int8"


def _in_int32(gradient: Accumulated, *arguments: object) -> bool:
    return gradient.values.dtype == torch.int32


def _norm_errors_known(
    precision: Precision, later: Accumulated, output: Feature, *arguments: object
) -> bool:
    return precision.name == "int8" and output.activation in conv_kernels.ACTIVATIONS


def _dense_forward(
    on: Launcher, precision: Precision, a: Feature, weight: QTensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if len(a.codes) <= kernels.MOST_ROWS:
        sums = kernels.small_product(on, a.codes, weight.codes)
    else:
        sums = precision.linear(a.codes, weight.codes).contiguous()
    return kernels.dense_forward(on, sums, a.scale, weight.scale, bias, LENGTH_EPSILON)


def _dense_backward(
    on: Launcher,
    precision: Precision,
    error: Tensor,
    a: Feature,
    output_codes: Tensor,
    weight: QTensor,
    randomness: Noise,
    update: bool,
    propagate: bool,
) -> tuple[Accumulated | None, Tensor | None, Accumulated | None]:
    found = kernels.dense_errors(
        on, error, output_codes, weight.scale, randomness, update=update, propagate=propagate
    )
    gradient = passed = None
    if found.by_column is not None:
        codes, scale = found.by_column
        values = precision.linear_grad_weight(codes, a.codes)
        gradient = Accumulated(values, scale.t() * a.scale)
    if found.by_row is not None:
        codes, scale = found.by_row
        passed = Accumulated(precision.linear_grad_input(codes, weight.codes), scale)
    return gradient, found.bias, passed


def _requantize(on: Launcher, precision: Precision, master: Tensor) -> tuple[Tensor, Tensor]:
    scale = kernels.row_scales(on, master)
    return kernels.quantize(on, master, scale), scale


def _refreshed_columns(on: Launcher, gradient: Accumulated, column_moment: Tensor) -> Tensor:
    square = kernels.gradient_columns(on, gradient.values.contiguous(), gradient.scale)
    return code_step.column_moments(square, column_moment)


def _adam_step(
    on: Launcher,
    gradient: Accumulated,
    state: Mapping[str, Tensor],
    factors: Tensor,
    randomness: Noise,
) -> dict[str, Tensor]:
    values = gradient.values.contiguous()
    reach, mean_square = kernels.gradient_rows(on, values)
    update, row = code_step.adam_update(mean_square * gradient.scale.square(), state, factors)
    moved = _moved(on, values, reach, gradient.scale, state, update, randomness)
    return moved | {"row_moment": row}


def _sgd_step(
    on: Launcher,
    gradient: Accumulated,
    state: Mapping[str, Tensor],
    factors: Tensor,
    randomness: Noise,
) -> dict[str, Tensor]:
    values = gradient.values.contiguous()
    reach, _ = kernels.gradient_rows(on, values)
    update = code_step.sgd_update(factors)
    return _moved(on, values, reach, gradient.scale, state, update, randomness)


def _moved(
    on: Launcher,
    values: Tensor,
    reach: Tensor,
    scale: Tensor,
    state: Mapping[str, Tensor],
    update: code_step.Update,
    randomness: Noise,
) -> dict[str, Tensor]:
    factors = code_step.row_factors(reach * scale, scale, state, update)
    moved = kernels.move_rows(
        on,
        values,
        state["codes"],
        state.get("remainder"),
        state["momentum"],
        (factors.kept, factors.taken, factors.held, factors.change),
        update.column_factor,
        randomness,
    )
    found = {"codes": moved.codes, "momentum": moved.momentum}
    if moved.remainder is not None:
        found["remainder"] = moved.remainder
    largest = moved.largest_steps, moved.largest_momentum
    return found | code_step.row_state(factors, *largest, state)


def _normalize(
    on: Launcher,
    precision: Precision,
    sums: Accumulated,
    gamma: Tensor,
    beta: Tensor,
    activation: str,
) -> tuple[Feature, Tensor, Tensor, Tensor]:
    found = conv_kernels.channel_moments(on, sums.values)
    moments = (
        found.mean.mean(dim=0),
        found.square.mean(dim=0),
        found.low.amin(dim=0).to(torch.float32),
        found.high.amax(dim=0).to(torch.float32),
    )
    norm = norm_passes.norm_of(precision, moments, sums.scale, gamma, beta)
    codes = conv_kernels.affine_codes(on, sums.values, norm.factor, norm.shift)
    return Feature(codes, norm.scale, activation), norm.inverse, norm.mean, norm.var


def _norm_errors(
    on: Launcher,
    precision: Precision,
    later: Accumulated,
    output: Feature,
    norm: tuple[Tensor, Tensor, Tensor],
    weight_scale: Tensor,
    randomness: Noise,
    update: bool,
    propagate: bool,
) -> tuple[QTensor | None, QTensor | None, Tensor, Tensor]:
    six = 6.0 / output.scale if output.activation == "relu6" else None
    error = conv_kernels.NormError(later.values, output.codes, output.activation, six)
    sums = conv_kernels.norm_error_sums(on, error)
    found = norm_passes.error_slopes(sums, later.scale.reshape(-1, 1), output, norm)
    slopes = conv_kernels.Slopes(found.slope, found.offset, found.tilt)
    reach = conv_kernels.norm_error_reach(on, error, slopes)
    channel_scale = per_channel = sample_scale = per_sample = None
    if update:
        channel_scale, per_channel = norm_passes.channel_scale(precision, reach)
    if propagate:
        sample_scale, steps = norm_passes.sample_scale(precision, reach, weight_scale)
        per_sample = steps.flatten(1)
    by_channel, by_sample = conv_kernels.norm_error_codes(
        on, error, slopes, per_channel, per_sample, randomness
    )
    return (
        _pair(by_channel, channel_scale),
        _pair(by_sample, sample_scale),
        found.dgamma,
        found.dbeta,
    )


def _pair(codes: Tensor | None, scale: Tensor | None) -> QTensor | None:
    return None if codes is None or scale is None else QTensor(codes, scale)
