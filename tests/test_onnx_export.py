"""What an exported model is made of: operators, types, quantizers, names, and when it changes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines import WeightsError
from engines.base import expected_arrays
from engines.onnx_export import export_onnx, export_prefix, refit_arrays
from tests.onnx_networks import NETWORKS, trained
from tests.test_architecture import loaded_by

every_network = pytest.mark.parametrize("name", NETWORKS)
PREFIXES = [name for name in NETWORKS if not name.endswith("-ff")]

# Those of our operators that the ONNX parser of TensorRT takes, with the types that we use, from
# the operator table of onnx/onnx-tensorrt: docs/operators.md, branch 10.1-GA, commit 96e7811; the
# parser of 10.3 is that of 10.1 or later. It has more; one that is wanted is looked up there first.
FLOAT_ONLY = {
    "Add", "Clip", "Concat", "Conv", "Div", "Exp", "Flatten", "Gemm", "Min", "Mul", "ReduceMax",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "Sigmoid", "Slice",
    "Sqrt", "Sub", "Transpose",
}  # fmt: skip
READ_BY_TENSORRT = FLOAT_ONLY | {"QuantizeLinear", "DequantizeLinear"}


def learned(name: str):
    return trained(name, steps=1)


def opened(model: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(model)


def initializers(model: onnx.ModelProto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def attributes(node: onnx.NodeProto):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def exports(name: str) -> list[bytes]:
    """The model that answers, and where there are prefixes that of one."""
    weights, middle = learned(name), len(NETWORKS[name].units) // 2
    models = [export_onnx(weights)]
    return [*models, export_prefix(weights, middle)] if name in PREFIXES else models


def other_values(name: str):
    """Weights of the same network, other in every array."""
    weights = learned(name)
    arrays = {
        name: -array if array.dtype == np.int8 else array * np.float32(0.75) + np.float32(0.001)
        for name, array in weights.arrays.items()
    }
    return dataclasses.replace(weights, arrays=arrays)


# --- valid, and readable by TensorRT -------------------------------------------------------------


@every_network
def test_a_model_is_valid_onnx(name):
    for model in exports(name):
        onnx.checker.check_model(opened(model), full_check=True)


@every_network
def test_every_operator_is_one_that_tensorrt_reads(name):
    for model in map(opened, exports(name)):
        assert {node.op_type for node in model.graph.node} <= READ_BY_TENSORRT
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


@every_network
def test_samples_go_in_and_goodness_comes_out_in_batches_of_any_size(name):
    spec, model = NETWORKS[name], opened(exports(name)[0])

    def described(values):
        return [(v.name, v.type.tensor_type.elem_type, sizes(v)) for v in values]

    def sizes(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert described(model.graph.input) == [("x", TensorProto.FLOAT, ["batch", *spec.input_shape])]
    wanted = [("goodness", TensorProto.FLOAT, ["batch", spec.max_classes])]
    assert described(model.graph.output) == wanted
    if name in PREFIXES:
        prefix = opened(export_prefix(learned(name), 1))
        shape = spec.units[0].output_shape
        assert described(prefix.graph.output) == [("codes", TensorProto.INT8, ["batch", *shape])]


@every_network
def test_int8_lies_between_a_quantizer_and_a_dequantizer_and_nowhere_else(name):
    for model in map(opened, exports(name)):
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
        types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
        types |= {"x": TensorProto.FLOAT}
        types |= {t.name: t.data_type for t in model.graph.initializer}
        sizes_of = {"ReduceSum": [1], "Reshape": [1], "Slice": [1, 2, 3]}
        for node in model.graph.node:
            if node.op_type in FLOAT_ONLY:
                for place, value in enumerate(node.input):
                    whole = place in sizes_of.get(node.op_type, [])
                    assert types[value] == (TensorProto.INT64 if whole else TensorProto.FLOAT)
                assert types[node.output[0]] == TensorProto.FLOAT


@every_network
def test_every_quantizer_is_symmetric_with_a_scale_of_one(name):
    for model in map(opened, exports(name)):
        values = initializers(model)
        for node in model.graph.node:
            if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
                continue
            assert not node.attribute  # one scale a tensor
            _, scale, *zero = node.input
            assert values[scale].dtype == np.float32
            assert values[scale] == 1
            # Without it, a quantizer of this opset would give uint8.
            assert [values[z].dtype for z in zero] == [np.int8] * (node.op_type == "QuantizeLinear")
            assert not any(values[z].any() for z in zero)


@every_network
def test_every_layers_product_is_of_int8_codes(name):
    model, spec = opened(exports(name)[0]), NETWORKS[name]
    made_by = {node.output[0]: node for node in model.graph.node}
    products = []
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        a, w = (made_by.get(operand) for operand in node.input[:2])
        if w is None:  # a gate's or the head's, which are float32
            assert node.input[1].endswith((".fc1.weight", ".fc2.weight", "head.weight"))
            continue
        assert w.op_type == a.op_type == "DequantizeLinear"
        assert made_by[a.input[0]].op_type == "QuantizeLinear"
        assert initializers(model)[w.input[0]].dtype == np.int8
        products.append(attributes(node).get("group", 1))
    layers = [layer for unit in spec.units for layer in unit.layers.values()]
    depthwise = [layer.in_channels for layer in layers if getattr(layer, "depthwise", False)]
    assert Counter(products) == Counter(depthwise + [1] * (len(layers) - len(depthwise)))


# --- equal bytes, names, and a version after another ---------------------------------------------


@every_network
def test_equal_weights_give_equal_bytes_whatever_their_version_and_classes(name):
    weights = learned(name)
    later = dataclasses.replace(weights, version=9, parent=8, last_seq=7, classes=("a", "b"))
    assert export_onnx(weights) == export_onnx(later)


@every_network
def test_another_version_differs_in_what_can_be_refitted_alone(name):
    """Put in their places, its arrays make one version's model that of the other."""
    first, second = learned(name), other_values(name)
    model, arrays = opened(export_onnx(first)), refit_arrays(second)
    before = initializers(model)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    assert model.SerializeToString(deterministic=True) == export_onnx(second)
    for array_name, array in arrays.items():
        assert (array.dtype, array.shape) == (before[array_name].dtype, before[array_name].shape)
        # Nothing learned is left in a constant, and nothing constant is to be refitted.
        # (The code of 6 may be 127 in both.)
        same = np.array_equal(array, before[array_name])
        assert not same or array_name.endswith(".six"), array_name
    assert all(n.startswith("constant.") for n in before.keys() - arrays.keys())


@every_network
def test_what_is_refitted_is_read_in_one_place(name):
    weights = learned(name)
    model = opened(export_onnx(weights))
    read = Counter(value for node in model.graph.node for value in node.input)
    assert {n: read[n] for n in refit_arrays(weights)} == dict.fromkeys(refit_arrays(weights), 1)


@pytest.mark.parametrize("name", PREFIXES)
def test_a_prefix_is_refitted_with_the_arrays_of_its_own_units(name):
    weights = learned(name)
    model = initializers(opened(export_prefix(weights, 1)))
    arrays = refit_arrays(weights, 1)
    assert arrays.keys() == {n for n in model if not n.startswith("constant.")}
    for n, array in arrays.items():
        np.testing.assert_array_equal(model[n], array)
        assert n.startswith(("input.", "units.0.", "units.1.input_scale"))


@every_network
def test_an_initializer_named_as_an_array_of_the_weights_holds_its_values(name):
    weights, arrays = learned(name), refit_arrays(learned(name))
    found = arrays.keys() & expected_arrays(weights.spec).keys()
    for n in found:
        array = weights.arrays[n]
        # In ONNX's own order, where that is another: kernels have the channels first.
        assert arrays[n].dtype == array.dtype
        np.testing.assert_array_equal(np.sort(arrays[n], axis=None), np.sort(array, axis=None))
    # Scales enter what is computed of them; of a first layer that hears labels the samples' part
    # and the labels' part are apart.
    computed = {n for n in weights.arrays if n.endswith("scale")}
    first = "units.0" if name.startswith("mlp") else "units.0.conv"
    apart = {f"{first}.weight.codes", "input.label_value"} if name.endswith("-ff") else set()
    canary = {"canary.input", "canary.goodness"}
    assert weights.arrays.keys() - found <= computed | apart | canary
    assert (apart | canary).isdisjoint(found)
    for n in arrays.keys() - found:
        assert n.endswith((".factor", ".reciprocal", ".six", ".negative", ".samples", ".labels"))


def test_a_kernel_has_its_channels_first():
    weights = learned("resnet8")
    codes = weights.arrays["units.0.conv.weight.codes"]  # [O, k k C]
    kernel = refit_arrays(weights)["units.0.conv.weight.codes"]
    layer = NETWORKS["resnet8"].units[0].conv
    assert kernel.shape == (layer.out_channels, layer.in_channels, 3, 3)
    for c, i, j in np.ndindex(kernel.shape[1:]):
        np.testing.assert_array_equal(kernel[:, c, i, j], codes[:, (i * 3 + j) * 3 + c])


@pytest.mark.parametrize("name", ["mlp-ff", "resnet8-ff"])
def test_labels_cost_no_product_when_a_sample_is_judged(name):
    """The first layer sees a sample's own inputs; what labels add to it lies ready."""
    weights, arrays = learned(name), refit_arrays(learned(name))
    spec, first = weights.spec, "units.0" if name == "mlp-ff" else "units.0.conv"
    own = spec.features if name == "mlp-ff" else spec.input_shape[0]
    assert arrays[f"{first}.weight.codes.samples"].shape[1] == own
    (layer,) = spec.units[0].layers.values()
    sums = arrays[f"{first}.weight.codes.labels"]
    assert math.prod(sums.shape) == spec.max_classes * math.prod(spec.units[0].output_shape)
    assert (sums == np.rint(sums)).all()
    assert np.abs(sums).max() <= 127**2 * layer.contraction


# --- refused, and where it may run ---------------------------------------------------------------


def test_weights_that_must_not_serve_are_not_exported():
    weights = learned("mlp-uneven")
    arrays = {**weights.arrays, "input.std": -weights.arrays["input.std"]}
    with pytest.raises(WeightsError, match=r"'input.std' holds a scale that is not positive"):
        export_onnx(dataclasses.replace(weights, arrays=arrays))


@pytest.mark.parametrize("units", [-1, 0, 3])
def test_a_prefix_has_a_unit_and_leaves_one(units):
    with pytest.raises(ValueError, match=f"prefix of {units} units was asked for"):
        export_prefix(learned("mlp-uneven"), units)


def test_labels_as_input_leave_no_prefix():
    with pytest.raises(ValueError, match="labels enter at the first unit"):
        export_prefix(learned("mlp-ff"), 1)


def test_an_export_loads_no_torch():
    modules = loaded_by("import engines.onnx_export")
    assert "onnx" in modules
    assert "torch" not in modules


@pytest.mark.parametrize("statement", ["import engines", "import daemon.__main__"])
def test_onnx_is_loaded_only_by_an_export(statement):
    assert "onnx" not in loaded_by(statement)
