"""Poison: no weights that are no numbers serve, nor any much worse than the last good version."""

from __future__ import annotations

import pytest

from tests.torture.poison import ATTACKS, GATE_OFF, poison

# Of a hold-out's samples: the gate's margin.
_MOST = 0.01


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("attack", ATTACKS)
def test_poison_never_serves_worse_than_the_last_good_version(
    zygote, tmp_path, size, seed, record, attack
):
    runs = [
        poison(zygote, tmp_path / str(number), attack, seed + number)
        for number in range(size("--poison-runs"))
    ]
    for run in runs:
        record(run)
    assert [run.seed for run in runs if run.healthy_accuracy < 0.8] == []
    assert [run.seed for run in runs if run.non_finite or run.failed_predictions] == []
    assert [run.seed for run in runs if run.worst_holdout_drop > _MOST + 1e-6] == []


def test_without_a_gate_poison_serves(zygote, tmp_path, record):
    run = poison(zygote, tmp_path / "home", "flipped", 1, GATE_OFF)
    record(run)
    assert run.worst_holdout_drop > 0.1
