"""The stand-in for INT8 hardware: the same integers, and no figure that is not INT8's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.datasets import DIGITS
from benchmarks.exact_products import exact_int_mm
from models.spec import CODE_MAX
from tests import reference
from tests.test_benchmarks import command

COSTS = (
    "train_seconds", "step_milliseconds", "peak_training_bytes", "planned_training_bytes",
    "energy_joules",
)  # fmt: skip


@given(
    rows=st.integers(1, 20),
    inner=st.sampled_from([1, 7, 1039, 1040, 1041, 2081]),
    columns=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_integer_product(rows, inner, columns, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(-CODE_MAX, CODE_MAX + 1, (rows, inner)).astype(np.int8)
    b = rng.integers(-CODE_MAX, CODE_MAX + 1, (inner, columns)).astype(np.int8)
    out = torch.empty(rows, columns, dtype=torch.int32)
    found = exact_int_mm(torch.from_numpy(a), torch.from_numpy(b), out=out)
    assert found is out
    np.testing.assert_array_equal(out.numpy(), reference.int_matmul(a, b))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact_though_they_are_odd(sign):
    """Beyond 2^24 a float32 has no odd number left."""
    inner = 1041
    a = torch.full((3, inner), CODE_MAX, dtype=torch.int8)
    b = torch.full((inner, 3), sign * CODE_MAX, dtype=torch.int8)
    assert (exact_int_mm(a, b) == sign * CODE_MAX**2 * inner).all()
    assert CODE_MAX**2 * inner > 2**24


def test_a_trial_learns_the_same_and_tells_no_cost(tmp_path):
    found = []
    for products in ("int8", "float32-exact"):
        file = tmp_path / f"{products}.json"
        done = command(
            *("--model", "mlp", "--data", DIGITS, "--methods", "bp-int8,ff-int8", "--epochs", "1"),
            *("--hidden", "40,40", "--threads", "1", "--fusion", "eager", "--json", str(file)),
            *("--products", products, "--batch", "32"),
        )
        assert done.returncode == 0, done.stderr
        records = json.loads(file.read_text())
        for record in records:
            assert record["settings"]["products"] == products
        found.append(records)
    for one, other in zip(*found, strict=True):
        assert one["accuracy_by_epoch"] == other["accuracy_by_epoch"]
        assert one["train_seconds"] > 0
        assert [other[cost] for cost in COSTS] == [None] * len(COSTS)
