"""Masters and optimizer of one unit: Adam as published, and a state that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.optim import AdamMasters

RATES = (1e-2, 3e-3, 3e-3, 0.0, 1e-3, 1e-1, 1e-3, 1e-3, 1e-2, 1e-2)


def start() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(6, 5, generator=generator),
        "bias": torch.randn(6, generator=generator),
    }


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(t.shape, generator=generator) for name, t in start().items()}


def adam(name: str):
    """float64: Kingma & Ba 2015, arXiv 1412.6980, algorithm 1, with its default settings."""
    b1, b2, epsilon = 0.9, 0.999, 1e-8
    theta = start()[name].double().numpy()
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, alpha in enumerate(RATES, start=1):
        g = gradients(t)[name].double().numpy()
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - alpha * m_hat / (np.sqrt(v_hat) + epsilon)
    return theta


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_ten_steps_equal_adam_as_published(name):
    masters = AdamMasters(start())
    for t, rate in enumerate(RATES, start=1):
        masters.step(gradients(t), rate)
    # Ten float32 steps against float64; each rounds to 2^-24 of values near 1.
    np.testing.assert_allclose(masters.tensors[name], adam(name), rtol=1e-5, atol=1e-6)


def test_the_given_tensors_are_copied_and_keep_their_values():
    given = start()
    masters = AdamMasters(given)
    masters.step(gradients(1), 1.0)
    assert torch.equal(given["weight"], start()["weight"])
    assert not torch.equal(masters.tensors["weight"], given["weight"])


def test_gradients_are_released_after_the_step():
    masters = AdamMasters(start())
    masters.step(gradients(1), 1e-3)
    assert all(tensor.grad is None for tensor in masters.tensors.values())


def test_a_loaded_state_takes_the_same_next_step():
    first, second = AdamMasters(start()), AdamMasters({n: t * 0 for n, t in start().items()})
    for t in range(3):
        first.step(gradients(t), 1e-2)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for masters in (first, second):
        masters.step(gradients(9), 1e-2)
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor), name


def test_a_state_that_lacks_a_name_is_refused():
    masters = AdamMasters(start())
    state = masters.state()
    del state["bias.exp_avg"]
    with pytest.raises(KeyError, match=r"bias\.exp_avg"):
        masters.load_state(state)
