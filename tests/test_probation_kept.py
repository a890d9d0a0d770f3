"""How far probation has come outlives the daemon: nothing invented, nothing twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from daemon.serving import versions as versions_module
from daemon.serving.gate import Scores
from daemon.serving.probation import Paired
from engines import weights_digest
from tests.daemon_fixtures import Parts, daemon_parts, network, put
from tests.test_rollback import BETTER, GOOD, WORSE, Told, accept, states

FIFTY = Paired(n=50, correct=45, previous_correct=45, lost=1)


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


def watched(parts: Parts) -> list[tuple]:
    """What a learner that begins now is told to watch."""
    told = Told()
    parts.swaps.follow(told)
    return told.heard[-1][1]


def pass_seconds(parts: Parts, seconds: float) -> None:
    """The swaps' clock jumps, and its thread looks."""
    now = parts.swaps._clock() + seconds
    parts.swaps._clock = lambda: now
    parts.swaps._tend()


def on_disk(parts: Parts) -> bytes:
    return (parts.folder / "versions" / "manifest.json").read_bytes()


def test_on_a_board_that_is_switched_off_every_evening_versions_pass(tmp_path):
    passed = []
    for day in range(1, 9):
        with daemon_parts(tmp_path) as parts:
            if day == 1:
                accept(parts, 2)
            oldest = watched(parts)[0][0]
            parts.swaps.probed(oldest, FIFTY, 60 * day)
            if states(parts)[oldest] == "good":
                passed.append(oldest)
            accept(parts, day + 2)
            parts.swaps.stop()
    assert passed == [2, 5]


@pytest.mark.parametrize("orderly", [True, False])
def test_a_crash_makes_counts_older_and_never_more(tmp_path, orderly):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2)
        parts.swaps.probed(2, FIFTY, 60)
        accept(parts, 3)
        parts.swaps.probed(3, FIFTY, 61)
        pass_seconds(parts, 601)
        before = on_disk(parts)
        parts.swaps.probed(2, FIFTY + FIFTY, 120)
        pass_seconds(parts, 590)
        assert on_disk(parts) == before  # the disk wears: not with each report
        if orderly:
            parts.swaps.stop()
    with daemon_parts(tmp_path) as parts:
        assert states(parts) == {1: "good", 2: "pending", 3: "pending"}
        assert watched(parts) == [(2, 1, 120 if orderly else 60), (3, 1, 61)]
        totals = [trial.total for trial in parts.swaps._trials]
        assert totals == [FIFTY + FIFTY if orderly else FIFTY, FIFTY]
        rest = dataclasses.replace(BETTER, n=100 if orderly else 150)
        parts.swaps.probed(2, dataclasses.replace(rest, n=rest.n - 1), 300)
        assert states(parts)[2] == "pending"
        parts.swaps.probed(2, rest, 301)
        assert states(parts)[2] == "good"
        assert parts.versions.manifest.entry(2).trial is None


def test_time_served_is_summed_over_starts(tmp_path):
    for start in range(3):
        with daemon_parts(tmp_path, probation_seconds=100) as parts:
            if start == 0:
                accept(parts, 2)
            pass_seconds(parts, 40)
            assert states(parts)[2] == ("good" if start == 2 else "pending")
            parts.swaps.stop()


def test_a_replaced_version_serves_no_time(tmp_path):
    with daemon_parts(tmp_path, probation_seconds=10_000) as parts:
        accept(parts, 2)
        accept(parts, 3)
        pass_seconds(parts, 700)
        parts.swaps.stop()
        seconds = [
            entry.trial and entry.trial.seconds for entry in parts.versions.manifest.versions
        ]
    assert seconds == [None, 0, pytest.approx(700, abs=30)]


def test_what_is_tried_again_begins_from_nothing(parts):
    accept(parts, 2, good=True)
    accept(parts, 3)
    parts.swaps.probed(3, FIFTY, 60)
    parts.swaps._keep()
    parts.swaps.rollback(None, "")
    parts.swaps.activate(3, "")
    (trial,) = parts.swaps._trials
    assert (trial.total, trial.through_seq, trial.seconds) == (Paired(), 0, 0)


def test_counts_beside_a_version_that_is_gone_do_not_count_beside_another(tmp_path):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2, good=True)
        accept(parts, 3)
        parts.swaps.probed(3, FIFTY, 60)
        parts.swaps.stop()
        parts.versions.change(parts.versions.manifest.with_state(2, "bad"))
    with daemon_parts(tmp_path) as parts:
        assert watched(parts) == [(3, 1, 0)]
        assert parts.swaps._trials[0].total == Paired()


def test_one_that_is_never_compared_gives_way_over_starts_too(tmp_path):
    for number in range(2, 7):
        with daemon_parts(tmp_path) as parts:
            accept(parts, number)
            parts.swaps.stop()
            on_trial = [trial.version for trial in parts.swaps._trials]
    assert on_trial == [5, 6]


def test_a_candidate_that_could_not_be_accepted_takes_no_turn(parts, monkeypatch):
    accept(parts, 2)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    weights = put(parts.versions, network(3))
    with monkeypatch.context() as patched:
        patched.setattr(versions_module, "replace_file", disk_full)
        for _ in range(4):
            decision = parts.promotion.consider(3, weights_digest(weights), GOOD)
            assert decision.reason == "storage"
            put(parts.versions, network(3))
    accept(parts, 3)
    assert states(parts)[2] == "pending"


def no_room(parts: Parts, monkeypatch) -> None:
    def opened(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(parts.swaps._engine, "open", opened)


def test_what_an_earlier_start_found_worse_goes_without_another_report(tmp_path, monkeypatch):
    with daemon_parts(tmp_path, probation_seconds=10) as parts:
        accept(parts, 2)
        with monkeypatch.context() as patched:
            no_room(parts, patched)
            parts.swaps.probed(2, WORSE, 64)
        assert parts.serving == 2
        parts.swaps.stop()
    with daemon_parts(tmp_path, probation_seconds=10) as parts:
        pass_seconds(parts, 11)
        assert (parts.serving, states(parts)[2]) == (1, "bad")


def test_a_candidate_in_place_of_a_bad_version_is_one_write(parts, monkeypatch):
    accept(parts, 2)
    assert parts.versions.manifest.best == 2
    with monkeypatch.context() as patched:
        no_room(parts, patched)
        parts.swaps.probed(2, WORSE, 64)
    weights = put(parts.versions, network(3))
    told, written = Told(), []
    parts.swaps.follow(told)
    real = versions_module.replace_file

    def replaced(path: Path, content: bytes) -> None:
        written.append(content)
        real(path, content)

    monkeypatch.setattr(versions_module, "replace_file", replaced)
    assert parts.promotion.consider(3, weights_digest(weights), Scores(100, 80, 90, 89)).accepted
    assert (len(written), states(parts)[2]) == (1, "bad")  # a crash leaves all of it or nothing
    assert told.heard[-1] == ("serves", 3, 3, False)  # the best was the bad one
