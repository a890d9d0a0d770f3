"""Rollback, activation and probation: each change whole, in one order, and told to the learner."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from daemon.errors import (
    NoPreviousError,
    QueueFullError,
    StorageError,
    UnknownVersionError,
    VersionChangedError,
)
from daemon.serving import versions as versions_module
from daemon.serving.change import CHANGES
from daemon.serving.gate import Scores
from daemon.serving.probation import Paired
from daemon.serving.versions import VersionStore
from engines import EngineFailedError, EngineUnavailableError, weights_digest
from tests.daemon_fixtures import daemon_parts, network, put
from tests.running import wait_for

GOOD = Scores(n=100, incumbent_correct=80, best_correct=80, candidate_correct=90)
BETTER = Paired(n=200, correct=190, previous_correct=180, lost=2)
WORSE = Paired(n=64, correct=20, previous_correct=60, lost=40)
ONE = np.ones((1, 6), dtype=np.float32)


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


class Told:
    """What a learner hears."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []

    def serves(self, manifest, *, retreat):
        self.heard.append(("serves", manifest.active, manifest.best, retreat))

    def passed(self, version):
        self.heard.append(("passed", version.version))

    def watch(self, trials):
        pairs = [(t.version, t.against and t.against.version, t.through_seq) for t in trials]
        self.heard.append(("watch", pairs))


@pytest.fixture
def told(parts) -> Told:
    told = Told()
    parts.swaps.follow(told)
    told.heard.clear()
    return told


def accept(parts, number: int, *, good: bool = False) -> None:
    weights = put(parts.versions, network(number))
    assert parts.promotion.consider(number, weights_digest(weights), GOOD).accepted
    if good:
        parts.swaps.probed(number, BETTER, 100)


def states(parts) -> dict[int, str]:
    return {entry.version: entry.state for entry in parts.versions.manifest.versions}


def ledger(parts) -> list[tuple]:
    parts.store.add([]).result(10)  # what is queued before it is written
    keys = ("result", "from", "to", "by", "reason")
    return [tuple(row[key] for key in keys) for row in parts.store.records(CHANGES, 10)]


def swaps(parts, result: str) -> float | None:
    return parts.reading("ffedge_model_swaps_total", result=result)


def test_a_version_passes_and_is_what_the_next_falls_back_on(parts, told):
    accept(parts, 2)
    assert told.heard == [("watch", [(2, 1, 0)])]
    parts.swaps.probed(2, Paired(n=199, correct=190, previous_correct=180, lost=2), 199)
    assert states(parts)[2] == "pending"
    parts.swaps.probed(2, BETTER, 200)
    assert told.heard[1:] == [("passed", 2), ("watch", [])]
    accept(parts, 3)
    assert told.heard[3:] == [("watch", [(3, 2, 0)])]
    assert states(parts) == {1: "good", 2: "good", 3: "pending"}
    assert parts.versions.manifest.previous == 2


def test_a_worse_version_is_rolled_back_by_itself(parts, told):
    accept(parts, 2, good=True)
    before = parts.slot.current.answer(ONE)
    accept(parts, 3)
    told.heard.clear()
    parts.swaps.probed(3, WORSE, 64)
    assert (parts.serving, states(parts)[3]) == (2, "bad")
    assert parts.slot.current.answer(ONE) == before
    assert told.heard == [("serves", 2, 2, True), ("watch", [])]
    assert ledger(parts) == [("rolled_back", "3", "2", "probation", "accuracy")]
    assert parts.store.records(CHANGES, 1)[0]["probation"]["lost"] == 40
    assert (swaps(parts, "swapped"), swaps(parts, "rolled_back")) == (2, 1)
    assert parts.reading("ffedge_model_version") == 2
    assert parts.reading("ffedge_swap_duration_seconds_count") == 3
    parts.swaps.probed(3, WORSE, 64)  # a report that was on its way
    assert parts.serving == 2


def test_one_that_was_replaced_early_goes_on_and_the_next_gets_a_better_fallback(parts, told):
    accept(parts, 2)
    accept(parts, 3)
    accept(parts, 4)  # 3 is dropped: it would never end where candidates come fast
    assert told.heard[-1] == ("watch", [(2, 1, 0), (4, 1, 0)])
    parts.swaps.probed(2, BETTER, 200)
    assert parts.versions.manifest.previous == 2
    parts.swaps.probed(4, WORSE, 200)
    assert parts.serving == 2


def test_one_that_was_replaced_and_is_worse_is_bad_and_nothing_is_swapped(parts, told):
    accept(parts, 2)
    accept(parts, 3)
    parts.swaps.probed(2, WORSE, 64)
    assert (parts.serving, states(parts)) == (3, {1: "good", 2: "bad", 3: "pending"})
    assert told.heard[-1] == ("watch", [(3, 1, 0)])
    assert swaps(parts, "rolled_back") == 0


def test_no_candidate_is_accepted_until_the_learner_has_gone_back(parts, told):
    accept(parts, 2, good=True)
    accept(parts, 3)
    parts.swaps.rollback(None, "drift")
    parts.swaps.rollback(1, "more drift")
    weights = put(parts.versions, network(4))
    assert parts.promotion.consider(4, weights_digest(weights), GOOD).reason == "overtaken"
    parts.swaps.retreated(1)  # from the first of the two
    assert parts.versions.manifest.retreat == 2
    parts.swaps.retreated(2)
    assert parts.versions.manifest.retreat == 0
    accept(parts, 5)


def test_a_candidate_that_was_made_for_another_version_is_refused(parts):
    accept(parts, 2, good=True)
    parts.swaps.activate(1, "compare")
    weights = put(parts.versions, dataclasses.replace(network(3), parent=2))
    decision = parts.promotion.consider(3, weights_digest(weights), GOOD)
    assert (decision.reason, parts.serving) == ("overtaken", 1)
    assert not parts.versions.path(3).exists()


def test_an_operator_rolls_back(parts, told):
    accept(parts, 2, good=True)
    accept(parts, 3, good=True)
    told.heard.clear()
    change = parts.swaps.rollback(None, "drift on cam2")
    assert (change.active, change.previous, parts.serving) == (2, 1, 2)
    assert 0 <= change.swap_seconds < 0.01
    assert told.heard == [("serves", 2, 2, True), ("watch", [])]
    assert parts.swaps.rollback(1, "still").previous is None
    with pytest.raises(NoPreviousError, match=r"activate \(ffedge activate\) serves any of it"):
        parts.swaps.rollback(None, "again")
    with pytest.raises(NoPreviousError, match="serves already"):
        parts.swaps.rollback(1, "again")
    with pytest.raises(NoPreviousError, match=r"found bad.*activate"):
        parts.swaps.rollback(3, "again")
    with pytest.raises(UnknownVersionError):
        parts.swaps.rollback(9, "again")
    assert ledger(parts) == [
        ("rolled_back", "2", "1", "operator", "still"),
        ("rolled_back", "3", "2", "operator", "drift on cam2"),
    ]


def test_what_a_rollback_went_behind_never_comes_back_by_itself(parts, told):
    accept(parts, 2, good=True)
    accept(parts, 3)
    parts.swaps.rollback(1, "labels were swapped since")
    assert states(parts) == {1: "good", 2: "bad", 3: "bad"}
    assert told.heard[-2] == ("serves", 1, 1, True)  # nor is any of it the best
    parts.swaps.retreated(parts.versions.manifest.retreat)
    accept(parts, 4)
    assert parts.swaps.probation[0]["against"] == "1"
    parts.versions.path(1).write_bytes(b"damaged")
    parts.versions.path(4).write_bytes(b"damaged")
    assert VersionStore(parts.versions.path(1).parent, keep=3).start(network).version == 5


def test_activating_undoes_a_rollback_and_retreats_nothing(parts, told):
    accept(parts, 2)
    parts.swaps.rollback(None, "by mistake")
    told.heard.clear()
    change = parts.swaps.activate(2, "it was right")
    assert (change.active, change.previous, states(parts)[2]) == (2, 1, "pending")
    assert told.heard == [("serves", 2, 1, False), ("watch", [(2, 1, 0)])]
    assert parts.swaps.activate(2, "twice").active == 2
    assert swaps(parts, "activated") == 1
    parts.swaps.probed(2, WORSE, 64)  # it is on probation like a candidate
    assert parts.serving == 1


@pytest.mark.parametrize("act", ["rollback", "activate"])
def test_a_damaged_version_is_not_swapped_in(parts, act):
    accept(parts, 2, good=True)
    content = bytearray(parts.versions.path(1).read_bytes())
    content[-1] ^= 1
    parts.versions.path(1).write_bytes(content)
    with pytest.raises(StorageError, match="the version that served goes on"):
        getattr(parts.swaps, act)(1, "")
    assert (parts.serving, parts.versions.manifest.active) == (2, 2)
    assert swaps(parts, "failed") == 1


@pytest.mark.parametrize("fault", ["open", "canary", "disagrees"])
def test_a_fallback_that_the_engine_does_not_serve_is_passed_over(parts, monkeypatch, fault):
    accept(parts, 2, good=True)
    accept(parts, 3)
    real = parts.swaps._engine.open

    def opened(weights):
        if weights.version == 2 and fault == "open":
            raise EngineUnavailableError("no")
        engine = real(weights)
        if weights.version == 2:
            other = real(network(1)).predict

            def predict(x):
                if fault == "canary":
                    raise EngineFailedError("CUDA: unspecified launch failure")
                return other(x)

            engine.predict = predict
        return engine

    monkeypatch.setattr(parts.swaps._engine, "open", opened)
    parts.swaps.probed(3, WORSE, 64)
    assert (parts.serving, swaps(parts, "failed")) == (1, 1)


def test_a_change_that_cannot_be_recorded_is_made(parts, told, monkeypatch, caplog):
    accept(parts, 2)
    told.heard.clear()

    def full(*_: object) -> None:
        raise QueueFullError("ingest is behind")

    monkeypatch.setattr(parts.store, "record_when_possible", full)
    parts.swaps.probed(2, WORSE, 64)
    assert parts.serving == 1
    assert told.heard == [("serves", 1, 1, True), ("watch", [])]
    assert "change cannot be recorded" in caplog.text


def test_a_damaged_fallback_is_passed_over(parts):
    accept(parts, 2, good=True)
    accept(parts, 3)
    parts.versions.path(2).unlink()
    parts.swaps.probed(3, WORSE, 64)
    assert parts.serving == 1


def test_with_no_fallback_left_the_version_goes_on(parts):
    accept(parts, 2)
    parts.versions.path(1).unlink()
    parts.swaps.probed(2, WORSE, 64)
    assert (parts.serving, swaps(parts, "failed")) == (2, 1)


def test_a_full_disk_does_not_keep_a_bad_version_serving(parts, tmp_path, monkeypatch):
    accept(parts, 2)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    with pytest.raises(StorageError):
        parts.swaps.activate(1, "")
    assert parts.serving == 2
    parts.swaps.probed(2, WORSE, 64)
    assert (parts.serving, parts.versions.manifest.active) == (1, 1)
    monkeypatch.undo()
    parts.versions.write_again()
    again = VersionStore(tmp_path / "versions", keep=3)
    assert again.start(network).version == 1


def test_of_two_rollbacks_at_once_one_wins(parts, monkeypatch):
    for number in (2, 3, 4):
        accept(parts, number, good=True)
    inside, go_on = threading.Event(), threading.Event()
    load = VersionStore.load

    def slow(self, entry):
        inside.set()
        assert go_on.wait(10)
        return load(self, entry)

    monkeypatch.setattr(VersionStore, "load", slow)
    found: list[object] = []

    def roll_back() -> None:
        try:
            found.append(parts.swaps.rollback(None, ""))
        except VersionChangedError as error:
            found.append(error)

    threads = [threading.Thread(target=roll_back) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    time.sleep(0.1)  # the others wait for the lock; were one late, it would be refused no less
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert parts.serving == 3
    assert len([each for each in found if isinstance(each, VersionChangedError)]) == 4


def test_three_requests_in_a_row_that_the_engine_fails_roll_back(parts):
    accept(parts, 2)
    old, served = parts.slot, parts.slot.current
    parts.swaps.start()
    try:
        for _ in range(2):
            old.failed(served)
        old.answered(served)
        for _ in range(3):
            assert parts.serving == 2
            old.failed(served)
        wait_for(lambda: parts.serving == 1, "the rollback")
        assert ledger(parts) == [("rolled_back", "2", "1", "probation", "engine")]
        assert parts.slot.failures == 0
        old.failed(served)  # a request that took the old version ends late
        assert parts.slot.failures == 0
    finally:
        parts.swaps.stop()


def test_time_with_nothing_against_it_makes_a_version_good(tmp_path):
    with daemon_parts(tmp_path, probation_seconds=0.05) as parts:
        parts.swaps.start()
        accept(parts, 2)
        wait_for(lambda: states(parts)[2] == "good", "the version to pass")
        parts.swaps.stop()


def test_a_clean_stop_is_no_crash(tmp_path):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2)
    for _ in range(5):
        with daemon_parts(tmp_path) as parts:
            assert (parts.serving, parts.versions.manifest.entry(2).attempts) == (2, 1)
            parts.swaps.stop()
            assert parts.versions.manifest.entry(2).attempts == 0


def test_after_three_crashes_the_ledger_says_what_happened(tmp_path):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2)
    for _ in range(3):
        with daemon_parts(tmp_path) as parts:
            assert parts.serving == 2
    with daemon_parts(tmp_path) as parts:
        assert (parts.serving, states(parts)[2]) == (1, "bad")
        assert ledger(parts) == [("rolled_back", "2", "1", "start", "every start crashed")]


def test_a_learner_that_begins_again_goes_on_counting_where_the_one_before_ended(parts, told):
    accept(parts, 2)
    parts.swaps.probed(2, Paired(n=150, correct=100, previous_correct=100, lost=3), 170)
    parts.swaps.follow(None)
    parts.swaps.follow(told)
    assert told.heard[-1] == ("watch", [(2, 1, 170)])
    parts.swaps.probed(2, Paired(n=49, correct=40, previous_correct=40, lost=0), 230)
    assert states(parts)[2] == "pending"
    parts.swaps.probed(2, Paired(n=50, correct=40, previous_correct=40, lost=0), 231)
    assert states(parts)[2] == "good"
