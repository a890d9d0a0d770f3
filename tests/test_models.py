"""Models: what a description refuses, equal bits from equal seeds, and the length of activities."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from models import MODEL_NAMES, ModelSpec
from models.base import length_normalize, scaled_normal
from models.layers import LENGTH_EPSILON
from models.mlp import build_mlp
from models.spec import OBJECTIVE_NAMES
from tests import reference

FIELDS = {"name": "mlp", "input_shape": (3, 4), "max_classes": 5, "hidden": (7, 6)}
SPEC = ModelSpec(**FIELDS)

# --- description ------------------------------------------------------------------------------


def test_sizes_follow_from_the_description():
    assert SPEC.features == 12
    assert SPEC.unit_sizes == [(12, 7), (7, 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "model 'resnet' is unknown; known: mlp"),
        ({"input_shape": ()}, r"input_shape \[\] must be \[features\], \[channels, length\] or"),
        ({"input_shape": (1, 2, 3, 4)}, r"input_shape \[1, 2, 3, 4\] must be"),
        ({"input_shape": (3, 0)}, r"input_shape \[3, 0\] must be .* positive sizes"),
        ({"max_classes": 1}, "max_classes is 1; a classifier needs at least 2"),
        ({"hidden": ()}, r"hidden \[\] needs at least one unit"),
        ({"hidden": (7, 4)}, r"hidden \[7, 4\] needs .* at least max_classes = 5 wide"),
        ({"width": 0.5}, r"width is 0.5; it scales the channels of conv networks, hidden says"),
        ({"input_shape": (133_145,)}, r"133145 products; an int32 .* at most 133144"),
        ({"objective": "bp"}, "objective 'bp' is unknown; known: class_goodness, ff"),
        ({"objective": ["ff"]}, r"objective \['ff'\] is unknown; known: class_goodness, ff"),
        ({"objective": "ff", "hidden": (7, 0)}, r"hidden \[7, 0\] needs .* positive width"),
        ({"objective": "ff", "input_shape": (133_140,)}, r"133145 products; an int32"),
    ],
)
def test_what_a_description_refuses_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**FIELDS | change)


CONV_FIELDS = {"name": "resnet8", "input_shape": (3, 32, 32), "max_classes": 10, "width": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (3072,)}, r"input_shape \[3072\] must be \[channels, height, width\] for"),
        ({"input_shape": (3, 1024)}, r"input_shape \[3, 1024\] must be .* for resnet8"),
        ({"hidden": (64,)}, r"hidden \[64\] is for the mlp; width scales .* resnet8"),
        ({"width": 0.0}, "width is 0.0; wanted above 0, at most 4"),
        ({"width": 4.01}, "width is 4.01; wanted above 0, at most 4"),
        ({"width": float("nan")}, "width is nan; wanted above 0"),
        ({"max_classes": 1}, "max_classes is 1"),
        # A 3x3 window over 14,794 channels: 133,146 products.
        ({"input_shape": (14_794, 4, 4)}, r"133146 products; an int32 .* at most 133144"),
    ],
)
def test_what_the_description_of_a_conv_network_refuses_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**CONV_FIELDS | change)


def test_the_longest_sum_that_an_int32_holds_is_taken():
    ModelSpec("mlp", (133_144,), 2, (2,))
    ModelSpec("resnet8", (14_793, 1, 1), 2)


def test_the_first_unit_of_an_ff_network_has_a_place_for_each_label():
    spec = dataclasses.replace(SPEC, objective="ff", hidden=(3, 2))  # no groups, so no least width
    assert spec.features == 12
    assert spec.label_places == 5
    assert spec.unit_sizes == [(17, 3), (3, 2)]
    assert spec.parameters == 17 * 3 + 3 + 3 * 2 + 2


def test_an_ff_network_of_convolutions_has_a_plane_for_each_label():
    plain = ModelSpec(**CONV_FIELDS)
    labelled = dataclasses.replace(plain, objective="ff")
    assert labelled.units[0].input_shape == (32, 32, 3 + 10)
    assert labelled.units[1:] == plain.units[1:]
    assert (labelled.features, labelled.input_shape) == (plain.features, plain.input_shape)


def test_a_conv_network_has_no_dense_sizes():
    with pytest.raises(ValueError, match="resnet8 has no dense units"):
        _ = ModelSpec(**CONV_FIELDS).unit_sizes


mlp_specs = st.integers(2, 20).flatmap(
    lambda classes: st.builds(
        ModelSpec,
        name=st.just("mlp"),
        input_shape=st.lists(st.integers(1, 50), min_size=1, max_size=3).map(tuple),
        max_classes=st.just(classes),
        hidden=st.lists(st.integers(classes, 500), min_size=1, max_size=5).map(tuple),
        objective=st.sampled_from(OBJECTIVE_NAMES),
    )
)
conv_specs = st.builds(
    ModelSpec,
    name=st.sampled_from(MODEL_NAMES[1:]),
    input_shape=st.tuples(st.integers(1, 8), st.integers(1, 100), st.integers(1, 100)),
    max_classes=st.integers(2, 20),
    width=st.floats(0, 4, exclude_min=True),
    objective=st.sampled_from(OBJECTIVE_NAMES),
)


@given(mlp_specs | conv_specs)
def test_json_round_trip(spec):
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(mlp_specs | conv_specs)
def test_each_unit_takes_what_the_unit_below_gives(spec):
    below = spec.units[0]
    pixels = math.prod(below.input_shape[:-1])
    assert math.prod(below.input_shape) == spec.features + pixels * spec.label_places
    for unit in spec.units[1:]:
        assert unit.input_shape == below.output_shape
        below = unit


def test_json_of_before_there_was_a_width_or_an_objective_is_read_and_written():
    """Digests of weights are taken over it: another text would make every kept version damaged."""
    old = {"name": "mlp", "input_shape": (3, 4), "max_classes": 5, "hidden": (7, 6)}
    assert ModelSpec.from_json(old) == SPEC
    assert SPEC.to_json() == old


def test_equal_widths_are_one_text():
    texts = {json.dumps(ModelSpec("resnet8", (3, 8, 8), 2, width=w).to_json()) for w in (2, 2.0)}
    assert len(texts) == 1


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field):
    fields = SPEC.to_json()
    del fields[field]
    with pytest.raises(ValueError, match=f"incomplete: '{field}'"):
        ModelSpec.from_json(fields)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 7},
        {"hidden": ["7"]},
        {"input_shape": None},
        {"max_classes": "many"},
        {"max_classes": None},
        {"hidden": [7.5]},
        {"max_classes": 5.9},
        {"dropout": 0.5},
        {"width": "1"},
        {"width": True},
        {"width": None},
        {"width": 10**400},
    ],
)
def test_a_field_of_another_kind_is_refused(change):
    with pytest.raises(ValueError, match=r"."):
        ModelSpec.from_json(SPEC.to_json() | change)


# --- network ----------------------------------------------------------------------------------


def parameters(seed: int) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in build_mlp(SPEC, seed).parameters()]


def test_same_seed_same_bits():
    torch.manual_seed(1)
    first = parameters(3)
    torch.manual_seed(2)
    assert parameters(3) == first
    assert parameters(4) != first


def test_first_weights_have_variance_two_over_fan_in():
    w = scaled_normal((400, 250), 250, torch.Generator().manual_seed(0)).double()
    # 4 sigma of the mean and of the variance of 10^5 normal draws.
    assert abs(w.mean()) < 4 * np.sqrt(2 / 250 / w.numel())
    assert w.var().item() == pytest.approx(2 / 250, rel=4 * np.sqrt(2 / w.numel()))


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_mlp(SPEC, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_units_compute_dense_relu_layers_of_the_direction_below():
    model, x = build_mlp(SPEC, 0).double(), torch.rand(9, 12, dtype=torch.float64)
    activities = [y.detach().numpy() for y in model(x)]
    inputs = x.numpy()
    for unit, found in zip(model.units, activities, strict=True):
        W, b = (p.detach().numpy() for p in (unit.linear.weight, unit.linear.bias))
        np.testing.assert_allclose(found, np.maximum(inputs @ W.T + b, 0), rtol=1e-12, atol=1e-14)
        inputs, _ = reference.length_normalize(found)


def test_a_unit_does_not_hear_how_long_the_activity_below_is():
    model, x = build_mlp(SPEC, 0), torch.rand(9, 12)
    before = model(x)
    with torch.no_grad():
        model.units[0].linear.weight *= 8
    after = model(x)
    torch.testing.assert_close(after[0], 8 * before[0])
    # The 1e-6 under the root weighs less once the mean square, here above 1e-3, has grown 64-fold.
    assert before[0].square().mean(dim=1).min() > 1e-3
    torch.testing.assert_close(after[1], before[1], rtol=1e-3, atol=1e-5)


# --- length -----------------------------------------------------------------------------------

activities = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(0, 2.0**20, width=32),
)


@given(activities)
def test_length_normalize_equals_the_oracle_and_leaves_its_argument(y):
    given_y = torch.from_numpy(y.copy())
    z, n = length_normalize(given_y)
    wanted_z, wanted_n = reference.length_normalize(y.astype(np.float64))
    assert n.shape == (len(y), 1)
    # A float32 mean of at most 12 squares, a root and a quotient.
    np.testing.assert_allclose(n, wanted_n, rtol=1.3e-6)
    np.testing.assert_allclose(z, wanted_z, rtol=2.6e-6, atol=1e-30)
    np.testing.assert_array_equal(given_y.numpy(), y)


@given(activities)
def test_mean_square_is_one_however_long_the_activity(y):
    assume(((y**2).mean(axis=1) > 1).all())
    z, _ = length_normalize(torch.from_numpy(y))
    # 1e-6 of a mean square above 1, and float32.
    np.testing.assert_allclose(z.square().mean(dim=1), 1, rtol=3e-6)


def test_a_silent_unit_has_direction_zero():
    z, n = length_normalize(torch.zeros(2, 5))
    assert not z.any()
    assert n.flatten().tolist() == pytest.approx([LENGTH_EPSILON**0.5] * 2)


def test_the_oracles_jacobian_is_that_of_length_normalize():
    y = torch.rand(7, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(lambda row: length_normalize(row[None])[0][0], y)
    np.testing.assert_allclose(reference.length_jacobian(y.numpy()), found, rtol=1e-12, atol=1e-15)


# --- imports ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package", ["models", "models.spec", "engines", "engines.base", "engines.registry"]
)
def test_importing_loads_no_torch(package):
    script = f"import sys, {package}; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "False"
