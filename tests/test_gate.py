"""No worse model is served: the verdicts one by one, then the whole way from file to slot."""

from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest

from daemon.config import GateSettings
from daemon.errors import StoreUnavailableError
from daemon.serving import versions as versions_module
from daemon.serving.gate import (
    CHECKS,
    ClassScores,
    Decision,
    Effort,
    Scores,
    becomes_best,
    judge,
)
from daemon.serving.promotion import LEDGER
from engines import (
    EngineFailedError,
    Prediction,
    Weights,
    canary_agrees,
    open_predict_engine,
    weights_digest,
)
from models import ModelSpec
from tests.daemon_fixtures import (
    daemon_parts,
    network,
    put,
    with_element,
)

OPEN = open_predict_engine("torch").open
GOOD = Scores(n=100, incumbent_correct=80, best_correct=80, candidate_correct=90)


def verdict(scores: Scores, weights: Weights | None = None, **settings) -> Decision:
    weights = weights or network(2)
    return judge(weights, 1, OPEN(weights), scores, GateSettings(**settings))


@pytest.mark.parametrize(
    ("n", "incumbent", "candidate", "margin", "reason"),
    [
        (100, 80, 90, 0.01, None),
        (100, 80, 80, 0.0, None),
        (100, 80, 79, 0.0, "accuracy"),
        # Exactly at the margin passes, one sample below does not.
        (100, 80, 79, 0.01, None),
        (100, 80, 78, 0.01, "accuracy"),
        (1000, 900, 890, 0.01, None),
        (1000, 900, 889, 0.01, "accuracy"),
        (100, 29, 0, 0.29, None),  # 0.29 * 100 < 29 in floating point
        (100, 30, 0, 0.29, "accuracy"),
        (50, 40, 40, 0.01, None),
        (50, 40, 39, 0.01, "accuracy"),  # half a sample is less than one
        (20, 0, 0, 0.01, None),
        (19, 0, 19, 0.01, "too_few_samples"),
        (0, 0, 0, 0.01, "too_few_samples"),
        (100, 100, 0, 1.0, None),
    ],
)
def test_the_verdict_on_accuracy(n, incumbent, candidate, margin, reason):
    decision = verdict(Scores(n, incumbent, incumbent, candidate), margin=margin, min_samples=20)
    assert decision.reason == reason
    assert decision.accepted == (reason is None)
    assert (decision.version, decision.incumbent, decision.margin) == (2, 1, margin)


def test_a_hundred_small_losses_are_not_let_through_one_by_one():
    """Each candidate is within the margin of the one before; all are judged against the best."""
    best, serving = 950, 950
    for _ in range(100):
        scores = Scores(1000, serving, best, serving - 10)
        if verdict(scores, margin=0.01).accepted:
            serving = scores.candidate_correct
            best = serving if becomes_best(scores) else best
    assert (serving, best) == (940, 950)


def test_a_best_version_that_the_world_has_left_behind_no_longer_counts():
    assert verdict(Scores(100, 80, 20, 79), margin=0.01).accepted
    assert becomes_best(Scores(100, 80, 20, 79))


class Elsewhere:
    """An engine that computes something else than the learner did."""

    def __init__(self, weights: Weights, change) -> None:
        self._engine, self._change = OPEN(weights), change

    def predict(self, x):
        honest = self._engine.predict(x)
        return Prediction(honest.class_index, self._change(honest.goodness))


def test_the_canary_passes_on_the_engine_that_serves():
    assert canary_agrees(network(2), OPEN(network(2)))
    untrained = dataclasses.replace(network(1), classes=())
    assert canary_agrees(untrained, OPEN(untrained))


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        (lambda g: g * np.float32(1 + 1e-5), True),  # another order of summing
        (lambda g: g * np.float32(1.01), False),
        (lambda g: g[:, ::-1], False),
        (lambda g: g * np.float32(np.nan), False),
        (lambda g: g + np.float32(np.inf), False),
    ],
)
def test_the_canary_finds_an_engine_that_answers_otherwise(change, agrees):
    engine = Elsewhere(network(2), change)
    assert canary_agrees(network(2), engine) is agrees
    decision = judge(network(2), 1, engine, GOOD, GateSettings())
    assert decision.reason == (None if agrees else "canary")


def test_the_canary_is_the_first_reason():
    altered = with_element(network(2), "canary.goodness", 1e3)
    assert verdict(Scores(0, 0, 0, 0), altered).reason == "canary"


def test_a_decision_as_it_is_kept():
    scores = Scores(
        40,
        30,
        35,
        20,
        candidate_alone=2,
        incumbent_alone=12,
        classes=ClassScores(("a", 7), (30, 10), (25, 5), (25, 10), (20, 0)),
        missing=("c",),
    )
    effort = Effort(last_seq=900, samples=128, seconds=1.5, joules=6.25)
    decision = dataclasses.replace(verdict(scores, margin=0.05), effort=effort)
    assert decision.to_json() == {
        "candidate": "2",
        "checks": dict.fromkeys(CHECKS, True) | {"accuracy": False},
        "delta": -0.25,
        "candidate_alone": 2,
        "incumbent_alone": 12,
        "classes": {
            "labels": ("a", 7),
            "n": (30, 10),
            "incumbent_correct": (25, 5),
            "best_correct": (25, 10),
            "candidate_correct": (20, 0),
        },
        "missing": ("c",),
        "last_seq": 900,
        "samples": 128,
        "seconds": 1.5,
        "joules": 6.25,
        "decision": "refused",
        "incumbent": "1",
        "reason": "accuracy",
        "n": 40,
        "incumbent_correct": 30,
        "best_correct": 35,
        "best_accuracy": 0.875,
        "candidate_correct": 20,
        "incumbent_accuracy": 0.75,
        "candidate_accuracy": 0.5,
        "margin": 0.05,
        "min_samples": 20,
    }
    assert decision.served_by_class() == {"a": 25 / 30, "7": 0.5}
    accepted = verdict(GOOD).to_json()
    assert (accepted["decision"], accepted["reason"]) == ("accepted", None)
    assert all(accepted["checks"].values())
    assert accepted["joules"] is None
    assert verdict(Scores(0, 0, 0, 0)).to_json()["candidate_accuracy"] == 0


@pytest.mark.parametrize("reason", CHECKS.values())
def test_checks_run_in_order_and_none_after_the_one_that_failed(reason):
    decision = Decision(2, 1, False, reason, Scores(0, 0, 0, 0), 0.01)
    results = [*decision.checks().values()]
    failed = [*CHECKS.values()].index(reason)
    assert results == [True] * failed + [False] + [None] * (len(CHECKS) - failed - 1)


def test_what_storage_refuses_has_passed_every_check():
    decision = Decision(2, 1, False, "storage", GOOD, 0.01)
    assert all(decision.checks().values())


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


def propose(parts, weights: Weights, scores: Scores = GOOD) -> Decision:
    put(parts.versions, weights)
    return parts.promotion.consider(weights.version, weights_digest(weights), scores)


def ledger(parts) -> list[dict]:
    return parts.store.records(LEDGER, 10)


def test_an_accepted_candidate_serves(parts):
    x = np.ones((3, 6), dtype=np.float32)
    before = parts.slot.current
    answer = before.answer(x)
    assert propose(parts, network(2)).accepted
    assert (parts.serving, parts.versions.manifest.active) == (2, 2)
    assert parts.slot.current.answer(x) != answer
    assert before.answer(x) == answer  # a request that took the old one goes on with it
    (record,) = ledger(parts)
    assert (record["version"], record["decision"]) == ("2", "accepted")
    assert parts.reading("ffedge_model_version") == 2
    assert parts.reading("ffedge_gate_decisions_total", decision="accepted", reason="") == 1
    assert parts.reading("ffedge_holdout_accuracy_ratio", role="active") == 0.9


def test_a_refused_candidate_leaves_the_slot_alone(parts):
    before = parts.slot.current
    decision = propose(parts, network(2), Scores(100, 80, 80, 70))
    assert decision.reason == "accuracy"
    assert parts.slot.current is before
    manifest = parts.versions.manifest
    assert (manifest.active, manifest.last) == (1, 2)
    assert not parts.versions.path(2).exists()
    assert ledger(parts)[0]["reason"] == "accuracy"
    assert parts.reading("ffedge_gate_decisions_total", decision="refused", reason="accuracy") == 1
    assert parts.reading("ffedge_holdout_accuracy_ratio", role="active") == 0.8


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unavailable(*_: object) -> None:
    raise StoreUnavailableError("full", "the disk is full")


@pytest.mark.parametrize(
    ("part", "fails"), [("store.record", unavailable), ("versions.accept", disk_full)]
)
def test_a_candidate_that_cannot_be_put_on_record_does_not_serve(parts, monkeypatch, part, fails):
    owner, name = part.split(".")
    monkeypatch.setattr(getattr(parts, owner), name, fails)
    decision = propose(parts, network(2))
    assert (decision.accepted, decision.reason, parts.serving) == (False, "storage", 1)
    assert parts.versions.manifest.last == 2
    assert [(r["decision"], r["reason"]) for r in ledger(parts)] == [("refused", "storage")]
    monkeypatch.undo()
    assert propose(parts, network(3)).accepted


def test_a_refusal_that_cannot_be_written_down_does_not_stop_judging(parts, monkeypatch):
    monkeypatch.setattr(parts.versions, "refuse", disk_full)
    assert propose(parts, network(2), Scores(100, 80, 80, 70)).reason == "accuracy"
    assert propose(parts, network(3)).accepted


OTHER = ModelSpec("mlp", (7,), 3, (8, 8))
CANDIDATES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "other weights": lambda path: path.write_bytes(b"x" * 1000),
}


@pytest.mark.parametrize("damage", CANDIDATES.values(), ids=CANDIDATES)
def test_a_damaged_candidate_is_refused_and_its_number_used_up(parts, damage):
    before = parts.slot.current
    weights = put(parts.versions, network(2))
    damage(parts.versions.path(2))
    decision = parts.promotion.consider(2, weights_digest(weights), GOOD)
    assert (decision.accepted, decision.reason) == (False, "damaged")
    assert parts.slot.current is before
    assert parts.versions.manifest.last == 2
    assert not parts.versions.path(2).exists()
    assert ledger(parts)[0]["reason"] == "damaged"
    assert propose(parts, network(3)).accepted


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("units.0.bias", np.nan, "not_finite"),
        ("canary.input", np.inf, "not_finite"),
        ("units.1.bias", 1e6, "range"),
        ("units.0.weight.scale", 1e6, "range"),
    ],
)
def test_a_candidate_that_has_diverged_is_refused(parts, name, value, reason):
    decision = propose(parts, with_element(network(2), name, value))
    assert (decision.accepted, decision.reason, parts.serving) == (False, reason, 1)
    (record,) = ledger(parts)
    failed = [check for check, passed in record["checks"].items() if passed is False]
    assert failed == ["finite" if reason == "not_finite" else "range"]


def test_a_candidate_whose_codes_are_saturated_is_refused(parts):
    weights = network(2)
    name = "units.0.weight.codes"
    ends = np.where(weights.arrays[name] > 0, 127, -127).astype(np.int8)
    arrays = {**weights.arrays, name: ends}
    decision = propose(parts, dataclasses.replace(weights, arrays=arrays))
    assert (decision.reason, parts.serving) == ("saturation", 1)


class Failing:
    """An engine that opens and does not answer, for want of memory."""

    def __init__(self, error: Exception) -> None:
        self.error, self.closed = error, False

    def predict(self, x):
        raise self.error

    def close(self):
        self.closed = True


def test_an_engine_that_fails_on_the_canary_refuses_the_candidate():
    decision = judge(network(2), 1, Failing(EngineFailedError("no")), GOOD, GateSettings())
    assert decision.reason == "engine"


@pytest.mark.parametrize("while_", ["it is opened", "it answers"])
def test_memory_that_runs_out_refuses_the_candidate(parts, monkeypatch, while_):
    full = Failing(MemoryError())

    def opened(weights):
        if while_ == "it is opened":
            raise MemoryError
        return full

    monkeypatch.setattr(parts.promotion._engine, "open", opened)
    assert propose(parts, network(2)).reason == "engine"
    assert (ledger(parts)[0]["reason"], parts.serving) == ("engine", 1)
    assert full.closed == (while_ == "it answers")


def test_the_ledger_has_what_a_candidate_cost_and_what_it_was_judged_by(parts):
    effort = Effort(last_seq=300, samples=128, seconds=2.0, joules=None)
    classes = ClassScores(("a", "b"), (50, 50), (40, 40), (40, 40), (50, 40))
    scores = dataclasses.replace(GOOD, classes=classes, missing=("c", "d"))
    weights = put(parts.versions, network(2))
    assert parts.promotion.consider(2, weights_digest(weights), scores, effort).accepted
    (record,) = ledger(parts)
    assert (record["candidate"], record["last_seq"], record["samples"]) == ("2", 300, 128)
    assert (record["seconds"], record["joules"], record["missing"]) == (2.0, None, ["c", "d"])
    assert record["classes"]["candidate_correct"] == [50, 40]
    assert parts.reading("ffedge_holdout_missing_classes") == 2
    for label, accuracy in (("a", 1.0), ("b", 0.8)):
        kind = {"label": label, "kind": "holdout"}
        assert parts.reading("ffedge_class_accuracy_ratio", **kind) == accuracy
    # What serves after a refusal is the incumbent, as it was just measured.
    propose(parts, network(3), dataclasses.replace(scores, candidate_correct=10))
    assert parts.reading("ffedge_class_accuracy_ratio", label="a", kind="holdout") == 0.8


def test_a_candidate_for_another_network_never_serves(parts):
    """It would answer no request: the learner read another configuration than the server."""
    decision = propose(parts, network(2, spec=OTHER))
    assert not decision.accepted
    assert parts.serving == 1
    assert parts.slot.current.answer(np.ones((1, 6), dtype=np.float32))


@pytest.mark.parametrize("scores", [GOOD, Scores(100, 80, 80, 70)], ids=["accepted", "refused"])
def test_a_manifest_that_cannot_be_written_leaves_the_slot_alone(parts, monkeypatch, scores):
    before = parts.slot.current
    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    decision = propose(parts, network(2), scores)
    assert decision.reason == ("storage" if scores is GOOD else "accuracy")
    assert parts.slot.current is before
    assert parts.versions.manifest.active == 1
    monkeypatch.undo()
    assert propose(parts, network(2)).accepted


def test_the_manifest_is_durable_before_the_swap(parts, monkeypatch):
    serving_at_write = []
    real = versions_module.replace_file

    def note(path, content) -> None:
        real(path, content)
        serving_at_write.append(parts.serving)

    monkeypatch.setattr(versions_module, "replace_file", note)
    assert propose(parts, network(2)).accepted
    assert (serving_at_write, parts.serving) == ([1], 2)
