"""The networks: descriptions against the float modules, and both against the published numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import MODEL_NAMES, ModelSpec
from models.base import FFModel
from models.blocks import ConvNormAct
from models.build import build_model, build_unit
from models.layers import ConvLayer, DenseLayer
from models.mlp import build_mlp
from models.scaling import scale_channels
from models.units import UnitSpec

MLP = ModelSpec("mlp", (3, 4), 5, (7, 6))
CONV_NAMES = MODEL_NAMES[1:]


def conv_spec(name: str, *, width: float = 1.0, size: int = 32) -> ModelSpec:
    return ModelSpec(name, (3, size, size), 10, width=width)


CASES = [conv_spec(name, width=width) for name in CONV_NAMES for width in (0.25, 1.0)]
every_network = pytest.mark.parametrize("spec", CASES, ids=lambda s: f"{s.name}-{s.width:g}")

# --- descriptions against modules ---------------------------------------------------------------


@every_network
def test_every_layer_and_unit_has_the_shape_and_cost_that_the_description_says(spec):
    model = build_model(spec, 0).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, _x, y, name=name: (
                shapes.update({name: (*y.shape,)}) if isinstance(y, torch.Tensor) else None
            )
        )
    x = torch.rand(1, *spec.input_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        activities = model(x)
    for u, (unit, activity) in enumerate(zip(spec.units, activities, strict=True)):
        assert (*activity.shape,) == channels_first(unit.output_shape)
        for name, layer in unit.layers.items():
            assert shapes[f"units.{u}.{name}"] == channels_first(layer.output_shape)
    assert counter.get_total_flops() == 2 * spec.macs


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    height, width, channels = shape
    return 1, channels, height, width


@every_network
def test_every_weight_has_its_shape_and_every_parameter_is_counted(spec):
    model = build_model(spec, 0)
    described = {
        f"units.{u}.{name}": layer.weight_shape
        for u, unit in enumerate(spec.units)
        for name, layer in unit.layers.items()
    }
    built = {
        name: (*module.weight_matrix().shape,)
        for name, module in model.named_modules()
        if isinstance(module, ConvNormAct)
    }
    assert built == described
    assert sum(p.numel() for p in model.parameters()) == spec.parameters


def test_the_mlp_is_described_too():
    model = build_model(MLP, 0)
    assert [(u.input_shape, u.output_shape) for u in MLP.units] == [((12,), (7,)), ((7,), (6,))]
    assert sum(p.numel() for p in model.parameters()) == MLP.parameters
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 12))
    assert counter.get_total_flops() == 2 * MLP.macs


def test_a_conv_unit_hears_how_long_the_activity_below_is():
    """Batch norm keeps the scale, goodness comes from a head: nothing is normalised between."""
    model = build_model(conv_spec("resnet8", size=8), 0).eval()
    activities = model(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(model.units[1](activities[0]), activities[1], rtol=0, atol=0)


# --- seeds --------------------------------------------------------------------------------------


def bits(model: FFModel) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("name", CONV_NAMES)
def test_same_seed_same_bits_and_the_global_generator_is_left_alone(name):
    spec = conv_spec(name, width=0.25)
    torch.manual_seed(1)
    first = bits(build_model(spec, 3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert bits(build_model(spec, 3)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert bits(build_model(spec, 4)) != first


def test_the_mlp_is_the_one_of_build_mlp():
    assert bits(build_model(MLP, 3)) == bits(build_mlp(MLP, 3))


def test_a_unit_of_another_kind_is_refused():
    class Unknown(UnitSpec):
        parts = {}  # noqa: RUF012 - never changed
        adds = False
        input_shape = output_shape = (1,)

    with pytest.raises(TypeError, match="no module for unit Unknown"):
        build_unit(Unknown(), torch.Generator())


# --- the papers' structure ----------------------------------------------------------------------

CHANNELS = {
    "resnet8": [16, 16, 32, 64],
    "resnet18": [64, 64, 64, 128, 128, 256, 256, 512, 512],
    "mobilenet_v2": [32, 16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320, 1280],
    "efficientnet_b0": [32, 16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320, 1280],
}
LAST_SIDE = {  # of a 32 x 32, a 64 x 64, a 65 x 65 and a 224 x 224 image
    "resnet8": [8, 16, 17, 56],
    "resnet18": [4, 8, 9, 28],
    "mobilenet_v2": [4, 8, 3, 7],
    "efficientnet_b0": [4, 8, 3, 7],
}


@pytest.mark.parametrize("name", CONV_NAMES)
def test_channels_of_every_activity(name):
    assert [unit.output_shape[2] for unit in conv_spec(name).units] == CHANNELS[name]


@pytest.mark.parametrize("name", CONV_NAMES)
def test_width_scales_every_activity(name):
    channels = [unit.output_shape[2] for unit in conv_spec(name, width=0.5).units]
    assert channels == [scale_channels(c, 0.5) for c in CHANNELS[name]]


@pytest.mark.parametrize("name", CONV_NAMES)
def test_pixels_of_the_last_activity(name):
    sides = [conv_spec(name, size=s).units[-1].output_shape[0] for s in (32, 64, 65, 224)]
    assert sides == LAST_SIDE[name]


def of_blocks(name: str, what: str) -> list:
    blocks = conv_spec(name).units[1:-1]
    return [getattr(unit, what) for unit in blocks]


def test_depthwise_kernels_are_the_papers():
    kernels = {n: [layer.kernel for layer in of_blocks(n, "depthwise")] for n in CONV_NAMES[2:]}
    assert kernels["mobilenet_v2"] == [3] * 17
    assert kernels["efficientnet_b0"] == [3, 3, 3, 5, 5, 3, 3, 3, *[5] * 7, 3]


def test_only_the_first_block_does_not_expand_and_the_others_do_sixfold():
    for name in CONV_NAMES[2:]:
        first, *others = of_blocks(name, "expand")
        assert first is None
        assert all(layer.out_channels == 6 * layer.in_channels for layer in others)


def test_gates_are_a_quarter_of_the_blocks_input_wide():
    reduced = [gate.reduced for gate in of_blocks("efficientnet_b0", "squeeze_excite")]
    assert reduced == [c // 4 for c in CHANNELS["efficientnet_b0"][:-2]]
    assert of_blocks("mobilenet_v2", "squeeze_excite") == [None] * 17


def test_blocks_of_one_shape_have_a_shortcut_around_them():
    for name in CONV_NAMES[2:]:
        for unit in conv_spec(name).units[1:-1]:
            assert unit.skip == (unit.input_shape == unit.output_shape)
    for name in CONV_NAMES[:2]:
        for unit in conv_spec(name).units[1:]:
            assert (unit.shortcut is None) == (unit.input_shape == unit.output_shape)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("resnet18", "relu"), ("mobilenet_v2", "relu6"), ("efficientnet_b0", "silu")],
)
def test_activation_functions_are_the_papers(name, activation):
    linear = {"conv2", "shortcut", "project"}
    for unit in conv_spec(name).units:
        for part, layer in unit.layers.items():
            assert isinstance(layer, ConvLayer)
            assert layer.activation == ("none" if part in linear else activation)


# --- published numbers --------------------------------------------------------------------------


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# What torchvision documents for 1000 classes (`num_params` of each network's weights), with ten
# classes instead; ResNet-18 with a 3x3 stem for its 7x7 one. MLPerf Tiny's Keras summary says
# 78,666, which holds biases of all convs and running statistics, but no norm in the two shortcuts.
PUBLISHED = {
    "resnet18": 11_689_512 - dense(512, 1000) + dense(512, 10) - 64 * 3 * (7 * 7 - 3 * 3),
    "mobilenet_v2": 3_504_872 - dense(1280, 1000) + dense(1280, 10),
    "efficientnet_b0": 5_288_548 - dense(1280, 1000) + dense(1280, 10),
    "resnet8": 78_666 - (16 * 3 + 32 * 3 + 64 * 3) - 2 * (16 * 3 + 32 * 2 + 64 * 2) + 2 * (32 + 64),
}


def with_head(spec: ModelSpec) -> int:
    """One linear layer from the pooled last activity to the classes, as back-propagation has it."""
    return spec.parameters + DenseLayer(spec.units[-1].output_shape[-1], 10).parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    assert with_head(conv_spec(name)) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "gigamacs"), [("mobilenet_v2", 0.30), ("efficientnet_b0", 0.39)])
def test_macs_at_224_pixels_with_a_head_are_those_that_torchvision_documents(name, gigamacs):
    macs = conv_spec(name, size=224).macs + DenseLayer(1280, 1000).macs
    assert round(macs / 1e9, 2) == gigamacs


def test_the_table_of_the_document_is_what_the_descriptions_say():
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    row = re.compile(
        r"^\| `(\w+)`(?:, hidden ([\d, ]+))? \| ([\dx]+) \| (\d+) \| (\d+) \| (\d+) \|",
        re.MULTILINE,
    )
    named = []
    for name, hidden, shape, units, headed, macs in row.findall(text):
        spec = ModelSpec(
            name,
            tuple(map(int, shape.split("x"))),
            10,
            tuple(map(int, hidden.split(","))) if hidden else (),
        )
        found = (spec.parameters, with_head(spec), spec.macs)
        assert found == (int(units), int(headed), int(macs)), name
        named.append(name)
    assert named == list(MODEL_NAMES)


def test_what_the_document_says_of_table_2_can_be_computed():
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()

    def running(spec: ModelSpec) -> int:
        layers = [layer for unit in spec.units for layer in unit.layers.values()]
        return sum(2 * layer.weight_shape[0] for layer in layers)

    resnet, mobile = conv_spec("resnet18"), conv_spec("mobilenet_v2")
    stem = with_head(resnet) + 64 * 3 * (7 * 7 - 3 * 3)
    efficient = conv_spec("efficientnet_b0")
    gates = sum(gate.parameters for gate in of_blocks("efficientnet_b0", "squeeze_excite"))
    for count in (
        with_head(resnet),
        stem,
        stem + running(resnet),
        with_head(mobile),
        with_head(mobile) + running(mobile),
        with_head(efficient),
        with_head(efficient) - gates,
        math.prod((784, 1000)) + math.prod((1000, 1000)) + math.prod((1000, 10)),
    ):
        assert f"{count / 1e6:.3f} M" in text
