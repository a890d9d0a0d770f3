"""A rollback waits neither for an engine that is built nor for the disk that the ledger is on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from daemon.errors import VersionChangedError
from daemon.serving import promotion as promotion_module
from daemon.serving.gate import Scores
from daemon.serving.promotion import LEDGER
from engines import weights_digest
from tests.daemon_fixtures import daemon_parts, network, put
from tests.running import wait_for
from tests.test_rollback import GOOD, accept

AT_ONCE_SECONDS = 1.0


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


class SlowEngine:
    """Opens one version only when it is let go."""

    def __init__(self, parts, monkeypatch, version: int) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        real = parts.swaps._engine.open

        def opened(weights):
            if weights.version == version:
                self.inside.set()
                assert self.go_on.wait(20)
            return real(weights)

        monkeypatch.setattr(parts.swaps._engine, "open", opened)


class Considered(threading.Thread):
    """A candidate's verdict, in a thread of its own."""

    def __init__(self, parts, number: int, scores: Scores = GOOD) -> None:
        super().__init__()
        self._parts, self._number, self._scores = parts, number, scores
        self.decision, self.told = None, []
        self._weights = put(parts.versions, network(number))
        self.start()

    def run(self) -> None:
        digest = weights_digest(self._weights)
        consider = self._parts.promotion.consider
        self.decision = consider(self._number, digest, self._scores, tell=self.told.append)


def test_an_operators_rollback_while_a_candidate_is_opened(parts, monkeypatch):
    accept(parts, 2, good=True)
    slow = SlowEngine(parts, monkeypatch, 3)
    considered = Considered(parts, 3)
    assert slow.inside.wait(10)
    started = time.monotonic()
    parts.swaps.rollback(None, "")
    took = time.monotonic() - started
    slow.go_on.set()
    considered.join(10)
    assert took < AT_ONCE_SECONDS
    assert (parts.serving, parts.versions.manifest.active) == (1, 1)
    assert (considered.decision.reason, considered.told) == ("overtaken", [False])
    row = parts.store.records(LEDGER, 1)[0]
    assert (row["version"], row["decision"], row["reason"]) == ("3", "refused", "overtaken")
    assert not parts.versions.path(3).exists()


def test_the_rollback_of_an_engine_that_fails_while_a_candidate_is_opened(parts, monkeypatch):
    accept(parts, 2)
    slow = SlowEngine(parts, monkeypatch, 3)
    considered = Considered(parts, 3)
    assert slow.inside.wait(10)
    parts.swaps.start()
    try:
        started = time.monotonic()
        for _ in range(3):
            parts.slot.failed(parts.slot.current)
        wait_for(lambda: parts.serving == 1, "the rollback")
        took = time.monotonic() - started
    finally:
        slow.go_on.set()
        considered.join(10)
        parts.swaps.stop()
    assert took < AT_ONCE_SECONDS
    assert considered.decision.reason == "overtaken"


def test_a_rollback_while_a_version_that_was_activated_is_opened(parts, monkeypatch):
    for number in (2, 3):
        accept(parts, number, good=True)
    slow, refused = SlowEngine(parts, monkeypatch, 1), []

    def activate() -> None:
        try:
            parts.swaps.activate(1, "")
        except VersionChangedError as error:
            refused.append(error)

    thread = threading.Thread(target=activate)
    thread.start()
    assert slow.inside.wait(10)
    started = time.monotonic()
    assert parts.swaps.rollback(2, "").active == 2
    took = time.monotonic() - started
    slow.go_on.set()
    thread.join(10)
    assert took < AT_ONCE_SECONDS
    assert (parts.serving, len(refused)) == (2, 1)


def test_a_rollback_while_the_ledger_is_not_written(parts, monkeypatch):
    accept(parts, 2, good=True)
    asked, never = threading.Event(), Future()

    def record(*_: object) -> Future:
        asked.set()
        return never

    monkeypatch.setattr(parts.store, "record", record)
    monkeypatch.setattr(promotion_module, "_LEDGER_SECONDS", 2.0)
    considered = Considered(parts, 3)
    assert asked.wait(10)
    started = time.monotonic()
    parts.swaps.rollback(None, "")
    took = time.monotonic() - started
    considered.join(10)
    assert not considered.is_alive()
    assert took < AT_ONCE_SECONDS
    assert (considered.decision.reason, considered.told) == ("storage", [False])
    assert parts.serving == 1


def test_what_a_refusal_measured_is_no_metric_where_a_rollback_came_before_it_was_told(
    parts, monkeypatch
):
    accept(parts, 2, good=True)
    asked, kept, real = threading.Event(), Future(), parts.store.record_when_possible

    def record(kind: str, *row: object) -> Future:
        if kind != LEDGER:
            return real(kind, *row)
        asked.set()
        return kept

    monkeypatch.setattr(parts.store, "record_when_possible", record)
    considered = Considered(parts, 3, Scores(100, 80, 80, 70))
    assert asked.wait(10)
    parts.swaps.rollback(None, "")
    kept.set_result(None)
    considered.join(10)
    assert (considered.decision.reason, parts.serving) == ("accuracy", 1)
    for role in ("active", "candidate"):
        assert parts.reading("ffedge_holdout_accuracy_ratio", role=role) is None


def test_what_an_accepted_version_measured_is_no_metric_where_it_was_rolled_back_at_once(
    parts, monkeypatch
):
    swap_in = parts.promotion._swap_in

    def swapped_in(*what: object) -> str | None:
        reason = swap_in(*what)
        parts.swaps.rollback(None, "")
        return reason

    monkeypatch.setattr(parts.promotion, "_swap_in", swapped_in)
    accept(parts, 2)
    assert parts.serving == 1
    assert parts.reading("ffedge_gate_decisions_total", decision="accepted", reason="") == 1
    assert parts.reading("ffedge_holdout_accuracy_ratio", role="active") is None


def test_of_what_was_accepted_the_ledger_knows_first_then_the_manifest(parts, monkeypatch):
    seen = []
    swap = parts.slot.swap

    def swapped(served):
        rows = parts.store.records(LEDGER, 1)
        seen.append((rows[0]["version"], rows[0]["decision"], parts.versions.manifest.active))
        swap(served)

    monkeypatch.setattr(parts.slot, "swap", swapped)
    accept(parts, 2)
    assert seen == [("2", "accepted", 2)]
