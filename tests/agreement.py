"""When one way of running a chain agrees with another: float sums have an order in each."""

from __future__ import annotations

import torch


def assert_agrees(found, wanted, place: str) -> None:
    """Codes to one step where float sums differ in their last bit, floats to their size."""
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype, place
        assert found.shape == wanted.shape, place
        difference = (found.double() - wanted.double()).abs()
        if wanted.dtype == torch.int8:
            wrapped = torch.minimum(difference, 256 - difference)  # a remainder's ends meet
            assert wrapped.max() <= 1, place
            assert (wrapped > 0).double().mean() <= 0.01, place
        else:
            assert (difference <= 2e-5 * wanted.double().abs().max() + 1e-30).all(), place
    elif isinstance(wanted, (tuple, dict)):
        names = [*wanted] if isinstance(wanted, dict) else range(len(wanted))
        assert len(found) == len(names), place
        for name in names:
            assert_agrees(found[name], wanted[name], f"{place}[{name}]")
    else:
        assert found == wanted, place
