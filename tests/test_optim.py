"""Float masters: Adam as published, torch's own optimizers, and a state that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.optim import BETA1, BETA2, EPSILON, MOMENTUM, FloatMasters
from engines.recipe import Optimizer

RATES = (1e-2, 3e-3, 3e-3, 0.0, 1e-3, 1e-1, 1e-3, 1e-3, 1e-2, 1e-2)
ADAM, SGD = Optimizer("adam"), Optimizer("sgd")
# Ten float32 steps against float64; each rounds to 2^-24 of values near 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def start() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(6, 5, generator=generator),
        "bias": torch.randn(6, generator=generator),
    }


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(t.shape, generator=generator) for name, t in start().items()}


def adam(name: str, decay: float):
    """float64: Kingma & Ba 2015, arXiv 1412.6980, algorithm 1, with its default settings.

    Decay apart from the gradient: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.
    """
    b1, b2, epsilon = 0.9, 0.999, 1e-8
    theta = start()[name].double().numpy()
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, alpha in enumerate(RATES, start=1):
        g = gradients(t)[name].double().numpy()
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - alpha * decay * theta - alpha * m_hat / (np.sqrt(v_hat) + epsilon)
    return theta


def sgd(name: str, decay: float):
    """float64: m <- 0.9 m + g, w <- (1 - rate decay) w - rate m."""
    w = start()[name].double().numpy()
    m = np.zeros_like(w)
    for t, rate in enumerate(RATES, start=1):
        m = 0.9 * m + gradients(t)[name].double().numpy()
        w = (1 - rate * decay) * w - rate * m
    return w


def stepped(optimizer: Optimizer) -> FloatMasters:
    masters = FloatMasters(start(), optimizer)
    for t, rate in enumerate(RATES, start=1):
        masters.step(gradients(t), rate)
    return masters


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_ten_steps_equal_adam_as_published(name, decay):
    masters = stepped(Optimizer("adam", decay))
    np.testing.assert_allclose(masters.tensors[name], adam(name, decay), **CLOSE)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_ten_steps_equal_sgd_with_momentum(name, decay):
    masters = stepped(Optimizer("sgd", decay))
    np.testing.assert_allclose(masters.tensors[name], sgd(name, decay), **CLOSE)


@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (ADAM, lambda p: torch.optim.Adam(p, betas=(BETA1, BETA2), eps=EPSILON)),
        (Optimizer("adam", 0.3), lambda p: torch.optim.AdamW(p, weight_decay=0.3)),
        (SGD, lambda p: torch.optim.SGD(p, momentum=MOMENTUM)),
    ],
    ids=["Adam", "AdamW", "SGD"],
)
def test_ten_steps_equal_torchs_optimizers(optimizer, theirs):
    parameters = {name: t.clone().requires_grad_() for name, t in start().items()}
    other = theirs([*parameters.values()])
    for t, rate in enumerate(RATES, start=1):
        other.param_groups[0]["lr"] = rate
        for name, gradient in gradients(t).items():
            parameters[name].grad = gradient
        other.step()
    for name, found in stepped(optimizer).tensors.items():
        # The same float32 operations in another order.
        torch.testing.assert_close(found, parameters[name].detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=lambda o: o.name)
def test_only_what_has_a_gradient_is_moved(optimizer):
    masters, whole = (FloatMasters(start(), optimizer) for _ in range(2))
    masters.step({"bias": gradients(1)["bias"]}, 0.1)
    assert torch.equal(masters.tensors["weight"], start()["weight"])
    # Its first step is its own, whenever it comes: counts are kept by tensor.
    masters.step({"weight": gradients(1)["weight"]}, 0.1)
    whole.step(gradients(1), 0.1)
    for name, tensor in whole.state().items():
        assert torch.equal(masters.state()[name], tensor), name


def test_the_given_tensors_are_copied_and_keep_their_values():
    given = start()
    masters = FloatMasters(given, ADAM)
    masters.step(gradients(1), 1.0)
    assert torch.equal(given["weight"], start()["weight"])
    assert not torch.equal(masters.tensors["weight"], given["weight"])


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=lambda o: o.name)
def test_gradients_are_read_and_not_changed(optimizer):
    given = gradients(1)
    FloatMasters(start(), optimizer).step(given, 0.1)
    assert all(torch.equal(given[name], tensor) for name, tensor in gradients(1).items())


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=lambda o: o.name)
def test_a_loaded_state_takes_the_same_next_step(optimizer):
    first = FloatMasters(start(), optimizer)
    second = FloatMasters({n: t * 0 for n, t in start().items()}, optimizer)
    for t in range(3):
        first.step(gradients(t), 1e-2)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for masters in (first, second):
        masters.step(gradients(9), 1e-2)
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor), name


def test_a_state_that_lacks_a_name_is_refused():
    masters = FloatMasters(start(), ADAM)
    state = masters.state()
    del state["bias.exp_avg"]
    with pytest.raises(KeyError, match=r"bias\.exp_avg"):
        masters.load_state(state)
