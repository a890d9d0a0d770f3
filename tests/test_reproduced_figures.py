"""What the figures are computed from; the commands: tests/test_reproductions.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.command import finish
from benchmarks.gradients import describe
from benchmarks.layer_gradients import backprop_gradients, forward_forward_gradients
from benchmarks.look_ahead import gain
from benchmarks.methods import METHODS
from benchmarks.paper import TABLE_I, TABLE_V
from benchmarks.report import grouped, ratios, spread
from benchmarks.samples import label_samples
from benchmarks.step_cost import fitted
from benchmarks.steps import ratio, time_rounds
from benchmarks.table5 import printed
from benchmarks.trial import Trial

# --- what is taken of gradients -----------------------------------------------------------------


def test_a_gradient_is_described_code_by_code():
    g = torch.tensor([127.0, -127.0, 0.4, -0.4, 0.6, 0.0, 0.0, 64.0])
    found = describe(g)
    assert found["elements"] == 8
    assert found["largest"] == 127.0
    assert found["largest_in_deviations"] == pytest.approx(127.0 / g.std(correction=0).item())
    assert found["zero"] == pytest.approx(2 / 8)
    assert found["lost"] == pytest.approx(2 / 6)
    counts = {code - 127: count for code, count in enumerate(found["counts"]) if count}
    assert counts == {-127: 1, 0: 4, 1: 1, 64: 1, 127: 1}
    rounded = g.round()
    cosine = (g @ rounded / (g.norm() * rounded.norm())).item()
    assert found["turned"] == pytest.approx(1 - cosine, abs=1e-6)
    assert describe(torch.zeros(3))["lost"] == 0.0


def trained(method: str) -> tuple[object, object]:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    x = (np.eye(4)[labels] + 0.3 * random.normal(size=(40, 4))).astype(np.float32)
    samples = label_samples(x, labels, "made up")
    trial = Trial(
        method=method, model="mlp", data="made up", epochs=1, hidden=(20, 17), fusion="eager"
    )
    learner = METHODS[method](trial, trial.spec((4,), 4), samples)
    learner.start_step(0.0)
    for _ in range(5):
        learner.step(samples.x, samples.labels)
    return learner, samples


def test_gradients_of_back_propagation_are_autograd_s():
    learner, samples = trained("bp-fp32")
    found = backprop_gradients(learner, samples)
    network = learner.network
    F.cross_entropy(network(learner.input(samples.x)), torch.from_numpy(samples.labels)).backward()
    wanted = [network.units[0][0], network.units[1][0], network.head]
    for layer, module in zip(found, wanted, strict=True):
        torch.testing.assert_close(layer.weight, module.weight.grad)
        torch.testing.assert_close(layer.error.sum(dim=0), module.bias.grad)


def test_gradients_of_forward_forward_are_those_of_each_unit_s_own_loss():
    learner, samples = trained("ff-int8")
    weights = learner.export(samples.classes)
    found = forward_forward_gradients(weights, samples)
    arrays = {name: torch.from_numpy(np.array(value)) for name, value in weights.arrays.items()}
    rows = torch.from_numpy(samples.x)
    x = ((rows - arrays["input.mean"]) / arrays["input.std"]).clamp(-4, 4)
    for unit, width in enumerate((20, 17)):
        w = arrays[f"units.{unit}.weight.codes"] * arrays[f"units.{unit}.weight.scale"]
        w.requires_grad_()
        a = x.detach() @ w.t() + arrays[f"units.{unit}.bias"]
        y = a.relu()
        # Groups of the classes: the first ones are one wider where 4 does not divide the width.
        bounds = np.array_split(np.arange(width), 4)
        goodness = torch.stack([y[:, group].square().mean(dim=1) for group in bounds], dim=1)
        loss = F.cross_entropy(5.0 * goodness, torch.from_numpy(samples.labels))
        error, weight = torch.autograd.grad(loss, [a, w])
        torch.testing.assert_close(found[unit].error, error)
        torch.testing.assert_close(found[unit].weight, weight)
        x = y / (y.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()


# --- timing and arithmetic ----------------------------------------------------------------------


def test_rounds_take_turns_and_give_medians():
    now, order = [0.0], []
    costs = {"a": iter([1.0, 9.0, 2.0, 5.0, 5.0, 5.0]), "b": iter([4.0] * 6)}

    def step(name: str) -> None:
        order.append(name)
        now[0] += next(costs[name])

    timed = time_rounds({"a": lambda: step("a"), "b": lambda: step("b")}, 2, 3, lambda: now[0])
    assert "".join(order) == "aaabbb" + "bbbaaa"
    assert timed == {"a": [2.0, 5.0], "b": [4.0, 4.0]}


def test_ratios_are_taken_round_by_round_and_seed_by_seed():
    timed = {"a": {"milliseconds": [1.0, 6.0, 2.0]}, "b": {"milliseconds": [2.0, 2.0, 2.0]}}
    found = ratio(timed, "a", "b")
    assert (found.median, found.low, found.high) == (1.0, 0.5, 3.0)
    assert ratio(timed, "a", "a") is None
    assert ratio(timed, "a", "c") is None
    assert ratio(timed, "c", "a") is None
    records = [
        {"method": "bp-fp32", "seed": 0, "x": 2.0}, {"method": "ff-int8", "seed": 0, "x": 1.0},
        {"method": "ff-int8", "seed": 1, "x": 9.0}, {"method": "bp-fp32", "seed": 2, "x": None},
        {"method": "ff-int8", "seed": 2, "x": 9.0},
    ]  # fmt: skip
    assert ratios(records, "x", "ff-int8", "bp-fp32") == spread([0.5])
    assert ratios(records[2:], "x", "ff-int8", "bp-fp32") is None
    assert [*grouped(records, lambda r: r["seed"])] == [0, 1, 2]
    assert spread([3.0, 1.0, 8.0]) == (4.0, 3.0, 1.0, 8.0)
    assert spread([3.0, 1.0, 8.0]).text(".1f", 2.0) == "6.0 (2.0 to 16.0)"
    assert spread([3.0]).text(".1f") == "3.0"


def test_gains_are_against_the_same_seed_without_look_ahead():
    def record(seed: int, weight: float, accuracy: float) -> dict:
        settings = {"look_ahead": [weight, weight], "look_ahead_form": "exact", "window": None}
        return {"method": "ff-int8", "seed": seed, "accuracy": accuracy, "settings": settings}

    records = [record(0, 0.0, 0.8), record(0, 0.5, 0.9), record(1, 0.0, 0.5), record(1, 0.5, 0.8)]
    gained = gain(records, "ff-int8, exact")
    assert (gained.low, gained.high) == pytest.approx((10.0, 30.0))
    assert gain(records, "ff-int8, look-ahead off") is None
    assert gain(records[1::2], "ff-int8, exact") is None


def test_a_line_is_found_again():
    records = [
        {"macs": int(1e6 * x), "milliseconds": [2.0 + 0.5 * x - 0.1, 2.0 + 0.5 * x, 99.0 + x]}
        for x in (1, 4, 10)
    ]
    line = fitted(records)
    assert (line.start, line.slope, line.explained) == pytest.approx((2.0, 0.5, 1.0))


def test_the_paper_s_means_are_those_of_the_correction():
    """algorithm.md 1.4: what its rows give, and what it prints."""

    def mean_saving(field: str, reference: str) -> float:
        return 100 * np.mean(
            [
                1 - getattr(rows["ff-int8"], field) / getattr(rows[reference], field)
                for rows in TABLE_V.values()
            ]
        )

    assert mean_saving("megabytes", "bp-gdai8-like") == pytest.approx(24.5, abs=0.05)
    assert mean_saving("seconds", "bp-gdai8-like") == pytest.approx(4.58, abs=0.01)
    assert mean_saving("joules", "bp-gdai8-like") == pytest.approx(8.30, abs=0.01)
    assert mean_saving("megabytes", "bp-fp32") == pytest.approx(38.7, abs=0.06)
    assert [r["bp-int8"] - r["bp-fp32"] for r in TABLE_I.values()] == pytest.approx(
        [-0.8, -19.6, -32.1, -29.1]
    )
    record = {"steps": {"model": "resnet18"}}
    assert printed(record, "points", "ff-int8", "bp-fp32") == pytest.approx(-0.4)
    assert printed(record, "time", "ff-int8", "bp-fp32") == pytest.approx(0.70, abs=0.005)
    assert printed(record, "energy", "bp-fp32", "bp-fp32") is None
    assert printed(record, "time", "bp-dai8", "bp-fp32") is None
    assert printed({"steps": {"model": "resnet8"}}, "time", "ff-int8", "bp-fp32") is None


def test_interruption_has_its_own_status(capsys):
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    assert finish(interrupted, []) == 130
    assert "records so far" in capsys.readouterr().err
