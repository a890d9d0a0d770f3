"""Poison: no weights that are no numbers serve, nor any much worse than the last good version."""

from __future__ import annotations

import pytest

from tests.torture.poison import ATTACKS, GATE_OFF, Poisoned, poison

# Of a hold-out's samples: the gate's margin.
_MOST = 0.01


# No restart between them: the small run is one daemon.
_IN_TURN = "flood+nan+stealth+flipped"


def broken(run: Poisoned) -> list[str]:
    """What a run must not have found."""
    refused = bool([r for r in run.decisions if r] or run.refused_posts)
    wrong = {
        "was never healthy": run.healthy_accuracy < 0.8,
        "served what is no number": run.non_finite > 0,
        "left a prediction unanswered": run.failed_predictions > 0,
        "served worse than the last good version": run.worst_holdout_drop > _MOST + 1e-6,
        # A flood's labels are right: what is learned from it may well serve.
        "refused nothing": not refused and run.attack != "flood",
    }
    return [f"run {run.seed} {what}" for what, found in wrong.items() if found]


@pytest.mark.timeout(600)
def test_attacks_in_turn_serve_nothing_worse_than_the_last_good_version(
    zygote, tmp_path, seed, record
):
    run = poison(zygote, tmp_path / "home", _IN_TURN, seed)
    record(run)
    assert broken(run) == []
    assert run.refused_posts > 0


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_serves_nothing_worse_than_the_last_good_version(
    zygote, tmp_path, size, seed, record, attack
):
    if not (runs := size("--poison-runs")):
        pytest.skip("a daemon a run; with --poison-runs, as in make torture-poison")
    found = []
    for n in range(runs):
        found.append(poison(zygote, tmp_path / str(n), attack, seed + n))
        record(found[-1])
    assert [what for run in found for what in broken(run)] == []
    if attack == "stealth":
        assert sum(run.rollbacks for run in found) > 0


@pytest.mark.timeout(600)
def test_without_a_gate_poison_serves(zygote, tmp_path, record):
    run = poison(zygote, tmp_path / "home", "flipped", 1, GATE_OFF)
    record(run)
    assert "run 1 served worse than the last good version" in broken(run)
