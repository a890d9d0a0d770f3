"""What a convolution with batch norm exports; what it learns: tests/test_conv_norm.py."""

from __future__ import annotations

import numpy as np
import torch

from engines.precision import Accumulated
from tests.networks import as_kernel
from tests.test_conv_norm import INT8, LAYERS, STEP, Pair, every_layer

# --- export -------------------------------------------------------------------------------------


@every_layer
def test_the_folded_layer_is_torchs_in_eval_mode(layer):
    pair = Pair(layer, INT8)
    for _ in range(3):
        a, x = pair.input()
        pair.engine.forward(a)
        pair.module(x)
    arrays = pair.engine.export()
    kernel = (arrays["weight.codes"] * arrays["weight.scale"]).double()
    pair.module.eval()
    wanted = pair.module.bn(pair.module.conv(x)).detach()
    with torch.no_grad():
        pair.module.conv.weight.copy_(as_kernel(kernel, pair.module.conv.weight))
    found = pair.module.conv(x).detach() + arrays["bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert arrays["weight.codes"].dtype == torch.int8
    assert (arrays["weight.scale"] > 0).all()  # negative gammas turned codes round, not scales
    assert (pair.gamma < 0).any()


def test_a_channel_that_hardly_varied_is_served_with_the_epsilon_of_its_norm():
    layer = LAYERS["pointwise"]
    pair = Pair(layer, INT8)
    state = {name: tensor.clone() for name, tensor in pair.engine.state().items()}
    state["var"].fill_(3e-6)
    pair.engine.load_state(state)
    weight = pair.engine._masters.weight
    wanted = pair.gamma.abs() * weight.scale[:, 0] / np.sqrt(3e-6 + 1e-5)
    np.testing.assert_allclose(pair.engine.export()["weight.scale"][:, 0], wanted, rtol=1e-5)


def test_a_gamma_of_zero_serves_beta_under_a_positive_scale():
    layer = LAYERS["dense"]
    gamma = np.ones(layer.out_channels)
    gamma[2] = 0.0
    pair = Pair(layer, INT8, gamma=gamma)
    pair.engine.forward(pair.input()[0])
    arrays = pair.engine.export()
    assert (arrays["weight.scale"] > 0).all()
    assert arrays["bias"][2] == pair.beta[2]
    largest = 127 * 127 * layer.contraction * arrays["weight.scale"][2].item()
    assert largest < 1e-6


@every_layer
def test_a_loaded_state_takes_the_same_next_step(layer):
    one, other = Pair(layer, INT8), Pair(layer, INT8, seed=1)
    one.engine.forward(one.input()[0])
    one.engine.backward(
        Accumulated(one.error(), torch.ones(())),
        STEP._replace(learning_rate=0.01), update=True, propagate=False,
    )  # fmt: skip
    other.engine.load_state({name: t.clone() for name, t in one.engine.state().items()})
    other.gamma.copy_(one.gamma), other.beta.copy_(one.beta)
    a, error = one.input()[0], one.error()
    for pair in (one, other):
        pair.engine.forward(a)
        pair.engine.backward(Accumulated(error, torch.ones(())), STEP, update=True, propagate=False)
    for name, tensor in one.engine.state().items():
        assert torch.equal(other.engine.state()[name], tensor), name
