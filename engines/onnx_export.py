"""A version's weights as an ONNX model that answers as the torch engine does.

One input, `x` float32 `[batch, *input_shape]` in the sensor's own units; one output, `goodness`
float32 `[batch, max_classes]`, or the int8 `codes` of a prefix. Quantization is explicit, with
scales of 1 (engines/onnx_units.py). What such a model cannot do is refuse: who runs it checks shape
and finiteness first, as `PredictEngine.predict` promises.

Where labels are an input (`ff`) the first layer's sums of a sample are computed once, and those of
the labels are an initializer; behind it every sample is a row for each class (engines/labels.py).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.base import INPUT_CLIP, Weights
from engines.judging import judges_of, label_length
from engines.latent import latent_shape
from engines.onnx_goodness import of_groups, of_linear_head, of_squares
from engines.onnx_graph import INPUT, Graph
from engines.onnx_units import Arrays, Steps, Units, kernels_of
from models.layers import ConvLayer
from models.spec import CODE_MAX, ModelSpec
from models.units import ConvUnitSpec, DenseUnitSpec


def export_onnx(weights: Weights) -> bytes:
    """The model that answers, serialized.

    Weights of one network and different values give models that differ in the initializers of
    `refit_arrays` and nowhere else; equal weights give equal bytes.

    Args:
        weights: Checked; version, lineage and class names do not enter.

    Returns:
        An `onnx.ModelProto` whose output is `goodness`, float32 `[batch, max_classes]`.

    Raises:
        WeightsError: The weights must not serve.
    """
    return _graph(weights, None).serialized(weights.spec.input_shape)


def export_prefix(weights: Weights, units: int) -> bytes:
    """The model of the first `units` units, serialized; see `PredictEngine.latent`.

    Args:
        weights: Checked.
        units: From 1 to one less than there are.

    Returns:
        An `onnx.ModelProto` whose output is `codes`, int8 `[batch, *latent_shape]`, channels last.

    Raises:
        WeightsError: The weights must not serve.
        ValueError: There is no such prefix, see `latent_shape`.
    """
    return _graph(weights, units).serialized(weights.spec.input_shape)


def refit_arrays(weights: Weights, units: int | None = None) -> Mapping[str, NDArray[np.generic]]:
    """What another version of the weights has other values of.

    Args:
        weights: Checked.
        units: Of the model of a prefix; None: of the one that answers.

    Returns:
        Initializer's name to array, with the model's dtype and shape. A name is that of the array
        in `engines.base.expected_arrays`, with a suffix where it holds what was computed from it.

    Raises:
        WeightsError: The weights must not serve.
        ValueError: There is no such prefix, see `latent_shape`.
    """
    return _graph(weights, units).learned_arrays


def _graph(weights: Weights, prefix: int | None) -> Graph:
    weights.check()
    spec, graph = weights.spec, Graph(weights.spec.name)
    units = Units(graph, weights.arrays)
    if prefix is None:
        graph.give(_goodness(units, spec), "goodness", (spec.max_classes,))
        return graph
    shape = latent_shape(spec, prefix)
    steps = _latent(units, spec, prefix)
    if len(shape) == 3:
        # Before the codes are made: TensorRT's transposition takes no int8.
        steps = graph.node("Transpose", steps, perm=(0, 2, 3, 1))
    graph.give(units.int8(steps), "codes", shape, np.int8)
    return graph


def _goodness(units: Units, spec: ModelSpec) -> str:
    """`[B, C]`: the mean over the judging units."""
    graph, judges = units.graph, judges_of(spec)
    judged = [
        _goodness_of(units, spec, index, output)
        for index, output in enumerate(_outputs(units, spec))
        if index in judges
    ]
    total = functools.reduce(lambda a, b: graph.node("Add", a, b), judged)
    if len(judged) > 1:
        total = graph.node("Div", total, graph.constant(len(judged)))
    if spec.label_places:
        total = graph.node("Reshape", total, graph.sizes(-1, spec.max_classes))
    return total


def _goodness_of(units: Units, spec: ModelSpec, index: int, output: str | Steps) -> str:
    unit, graph = spec.units[index], units.graph
    activity = units.activity(output) if isinstance(output, Steps) else output
    if spec.label_places:
        return of_squares(graph, activity, unit)
    if isinstance(unit, DenseUnitSpec):
        return of_groups(graph, activity, unit.linear.outputs, spec.max_classes)
    return of_linear_head(units, activity, unit.output_shape)


def _latent(units: Units, spec: ModelSpec, prefix: int) -> str:
    """Steps of what the unit behind the prefix gets."""
    output = next(itertools.islice(_outputs(units, spec), prefix - 1, None))
    if isinstance(output, Steps):
        return output.value
    z = units.length_normalized(output, math.prod(spec.units[prefix].input_shape))
    return units.steps(z, f"units.{prefix}.input_scale").value


def _outputs(units: Units, spec: ModelSpec) -> Iterator[str | Steps]:
    """What each unit gives: a dense one its activity, another steps that keep their scale."""
    samples = _standardized(units, spec)
    if isinstance(spec.units[0], DenseUnitSpec):
        return _dense_outputs(units, spec, samples)
    return _conv_outputs(units, spec, samples)


def _standardized(units: Units, spec: ModelSpec) -> str:
    graph = units.graph
    x = graph.node("Flatten", INPUT, axis=1)
    for op, name in (("Sub", "input.mean"), ("Div", "input.std")):
        x = graph.node(op, x, graph.learned(name, units.arrays[name]))
    return graph.node("Clip", x, graph.constant(-INPUT_CLIP), graph.constant(INPUT_CLIP))


def _dense_outputs(units: Units, spec: ModelSpec, x: str) -> Iterator[str]:
    for index, unit in enumerate(spec.units):
        name, labels = f"units.{index}", 0 if index else spec.label_places
        if index or labels:
            x = units.length_normalized(x, math.prod(unit.input_shape) - labels)
        a = units.steps(x, f"{name}.input_scale")
        sums = units.dense(name, a, labels)
        if index == 0 and spec.label_places:
            sums = _under_each_label(units, spec, name, sums)
        x = units.dense_activity(name, sums)
        yield x


def _conv_outputs(units: Units, spec: ModelSpec, x: str) -> Iterator[Steps]:
    x = units.graph.node("Reshape", x, units.graph.sizes(-1, *spec.input_shape))
    samples = units.steps(x, "input.scale")
    stem, *later = spec.units
    assert isinstance(stem, ConvUnitSpec)  # noqa: S101 - narrows the type
    name = "units.0.conv"
    sums = units.conv(name, stem.conv, samples, spec.label_places)
    if spec.label_places:
        sums = _under_each_label(units, spec, name, sums)
    a = units.conv_steps(name, stem.conv, sums, samples.scale)
    yield a
    for index, unit in enumerate(later, start=1):
        a = units.unit(f"units.{index}", unit, a)
        yield a


def _under_each_label(units: Units, spec: ModelSpec, name: str, sums: str) -> str:
    """The first layer's sums of each sample under each label, `[B * C, ...]`, label by label."""
    graph = units.graph
    of_labels = label_sums(spec, units.arrays)
    shape = of_labels.shape[1:]
    sums = graph.node("Reshape", sums, graph.sizes(-1, 1, *shape))
    sums = graph.node("Add", sums, graph.learned(f"{name}.weight.codes.labels", of_labels))
    return graph.node("Reshape", sums, graph.sizes(-1, *shape))


def label_sums(spec: ModelSpec, arrays: Arrays) -> NDArray[np.float32]:
    """The first layer's sums of every label with no sample, `[C, out]` or `[C, O, H', W']`.

    Whole numbers; a label is one input of a dense layer, one constant plane of a convolution.
    """
    first = next(iter(spec.units[0].layers.values()))
    name, scale = "units.0", "units.0.input_scale"
    if isinstance(first, ConvLayer):
        name, scale = "units.0.conv", "input.scale"
    codes = arrays[f"{name}.weight.codes"]
    value = np.float32(label_length(spec, arrays["input.label_value"].item()))
    steps = value * np.reciprocal(np.asarray(arrays[scale], dtype=np.float32))
    code = int(np.rint(np.minimum(steps, np.float32(CODE_MAX))))
    sums: NDArray[np.float32]
    if isinstance(first, ConvLayer):
        rows, columns = map(_taps_inside, (first, first), first.in_size, first.out_size)
        kernels = kernels_of(first, codes)[:, -spec.label_places :].astype(np.float32)
        # Kernels o, labels c, taps i and j; windows y and x, which see a tap or zeros.
        sums = np.einsum("ocij,yi,xj->coyx", kernels, rows, columns)
    else:
        sums = codes[:, -spec.label_places :].T.astype(np.float32)
    sums *= np.float32(code)
    return sums


def _taps_inside(layer: ConvLayer, size: int, count: int) -> NDArray[np.float32]:
    """Along one axis, 1 where a window's tap lies inside the image: `[windows, taps]`."""
    pixel = np.arange(count)[:, None] * layer.stride + np.arange(layer.kernel) - layer.padding
    return ((pixel >= 0) & (pixel < size)).astype(np.float32)
