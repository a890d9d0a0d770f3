"""Squeeze-and-excitation against torch's own modules, and its gated activity in int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.feature import Feature
from engines.fusion import Fusion
from engines.precision import PRECISIONS, Accumulated
from engines.squeeze_excite import PARAMETERS, SqueezeExciteTrainLayer, apply_gate, squeeze
from engines.unit import Gradients
from models.blocks import ACTIVATIONS, SqueezeExcite
from models.layers import SqueezeExciteSpec
from tests import reference

INT8, FP32 = PRECISIONS["int8"], PRECISIONS["fp32"]
CHANNELS, REDUCED, BATCH = 12, 5, 6
ONE = torch.ones(())


def gate_of(precision):
    """The engine's layer and torch's module, with the same parameters, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    module = SqueezeExcite(SqueezeExciteSpec(CHANNELS, REDUCED), generator)
    with torch.no_grad():
        for fc in (module.fc1, module.fc2):
            fc.bias.copy_(torch.randn(fc.bias.shape, generator=generator))
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    gradients = Gradients()
    fusion = Fusion("eager", "a test")
    layer = SqueezeExciteTrainLayer(parameters, gradients, "g", precision, fusion)
    return layer, module.double(), gradients, parameters


def feature(precision, activation: str = "silu", rows: int = BATCH) -> Feature:
    z = torch.randn(rows, 4, 3, CHANNELS, generator=torch.Generator().manual_seed(1))
    scale = precision.scale(z.abs().amax())
    return Feature(precision.quantize(z, scale), scale, activation)


def as_module_sees_it(a: Feature) -> torch.Tensor:
    return ACTIVATIONS[a.activation](a.codes.double() * a.scale).permute(0, 3, 1, 2)


def test_the_module_has_the_parameters_that_the_engine_names():
    layer, module, _, _ = gate_of(FP32)
    assert [name for name, _ in module.named_parameters()] == [*PARAMETERS]
    assert layer.state().keys() == {"output_scale"}


@pytest.mark.parametrize("precision", [INT8, FP32], ids=lambda p: p.name)
def test_forward_is_the_modules(precision):
    layer, module, _, _ = gate_of(precision)
    a = feature(precision)
    output = layer.forward(a)
    wanted = module(as_module_sees_it(a)).detach().permute(0, 2, 3, 1)
    assert output.activation == "none"
    if precision is FP32:
        np.testing.assert_allclose(output.codes, wanted, rtol=1e-4, atol=1e-6)
        return
    assert output.codes.dtype == torch.int8
    assert output.codes.abs().max() == 127
    # Half a step of its own, and what half a step of the activity moves through a gate below 1.
    bound = 0.51 * output.scale + 0.51 * a.scale
    assert ((output.codes * output.scale - wanted).abs() <= bound).all()


def test_gradients_equal_autograd():
    layer, module, gradients, _ = gate_of(FP32)
    a = feature(FP32, "none")
    layer.forward(a)
    error = torch.randn(a.codes.shape, generator=torch.Generator().manual_seed(2))
    found = layer.backward(Accumulated(error, ONE), update=True).dequantize()
    x = as_module_sees_it(a).requires_grad_()
    leaves = [x, *module.parameters()]
    grads = torch.autograd.grad(module(x), leaves, error.double().permute(0, 3, 1, 2))
    assert reference.relative_error(found, grads[0].permute(0, 2, 3, 1)) < 1e-5
    assert gradients.keys() == {f"g.{name}" for name in PARAMETERS}
    for name, wanted in zip(PARAMETERS, grads[1:], strict=True):
        assert reference.relative_error(gradients[f"g.{name}"], wanted) < 1e-4, name


def test_an_error_in_integers_is_worth_its_scale_and_nothing_is_learned_unasked():
    layer, _, gradients, parameters = gate_of(INT8)
    a = feature(INT8)
    layer.forward(a)
    kept = {name: p.clone() for name, p in parameters.items()}
    values = torch.randint(-9000, 9000, a.codes.shape, dtype=torch.int32)
    scale = torch.rand(BATCH, 1, 1, 1) * 1e-3
    found = layer.backward(Accumulated(values, scale), update=False).dequantize()
    assert not gradients
    whole = layer.backward(Accumulated(values * scale, ONE), update=True).dequantize()
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(parameters[name], p) for name, p in kept.items())


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_a_samples_gate_does_not_depend_on_the_rest_of_its_batch(rows):
    _, _, _, parameters = gate_of(INT8)
    a = feature(INT8, rows=40)
    whole = squeeze(INT8, a, parameters).gate
    part = squeeze(INT8, a._replace(codes=a.codes[:rows]), parameters).gate
    assert torch.equal(part, whole[:rows])


def test_serving_gives_the_scale_and_clips():
    _, _, _, parameters = gate_of(INT8)
    a = feature(INT8)
    gate = squeeze(INT8, a, parameters).gate
    codes, scale = apply_gate(INT8, a, gate, torch.tensor(0.01))
    assert scale.item() == pytest.approx(0.01)
    wanted = a.dequantize(INT8).double() * gate.double()[:, None, None, :] / 0.01
    assert ((codes - wanted.clamp(-127, 127)).abs() <= 0.501).all()
    assert codes.abs().max() == 127


def test_the_serving_scale_follows_and_a_layer_that_has_been_updated_says_so():
    layer, _, _, _ = gate_of(INT8)
    assert layer.export()["output_scale"] == 1
    a = feature(INT8)
    scale = layer.forward(a).scale
    assert layer.state()["output_scale"] == scale
    assert layer.export()["output_scale"] == scale
    later = Accumulated(torch.zeros(a.codes.shape), ONE)
    layer.backward(later, update=True)
    with pytest.raises(RuntimeError, match="has kept nothing: forward comes first"):
        layer.backward(later, update=True)
