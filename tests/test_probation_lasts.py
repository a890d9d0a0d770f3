"""Probation goes on, whatever fails on the way, and none blocks another's for good."""

from __future__ import annotations

import pytest

from daemon.errors import NoPreviousError
from daemon.serving.gate import Scores
from daemon.serving.probation import Paired
from daemon.serving.versions import VersionStore
from engines import weights_digest
from tests.daemon_fixtures import daemon_parts, network, put
from tests.running import wait_for
from tests.test_rollback import BETTER, WORSE, Told, accept, states


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        parts.swaps.start()
        yield parts
        parts.swaps.stop()


@pytest.fixture
def told(parts) -> Told:
    told = Told()
    parts.swaps.follow(told)
    told.heard.clear()
    return told


def fail(parts) -> None:
    for _ in range(3):
        parts.slot.failed(parts.slot.current)


def test_the_thread_outlives_what_nobody_thought_of(parts, monkeypatch, caplog):
    accept(parts, 2)
    real, times = VersionStore.write_again, []

    def breaks(self):
        times.append(1)
        if len(times) == 1:
            raise ZeroDivisionError
        real(self)

    monkeypatch.setattr(VersionStore, "write_again", breaks)
    wait_for(lambda: "it is tried again" in caplog.text, "the fault")
    fail(parts)
    wait_for(lambda: parts.serving == 1, "the rollback")


class Fault:
    """Keeps every version from being read or opened for some times."""

    def __init__(self, parts, monkeypatch, error: Exception, times: int) -> None:
        self.met = 0
        real = parts.swaps._engine.open

        def opened(weights):
            self.met += 1
            if self.met <= times:
                raise error
            return real(weights)

        monkeypatch.setattr(parts.swaps._engine, "open", opened)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("CUDA out of memory")]
)
@pytest.mark.parametrize("reason", ["engine", "accuracy"])
def test_a_bad_version_goes_as_soon_as_a_fallback_opens(parts, monkeypatch, error, reason):
    accept(parts, 2, good=True)
    accept(parts, 3)
    fault = Fault(parts, monkeypatch, error, 2)  # both fallbacks, once
    if reason == "engine":
        fail(parts)
    else:
        parts.swaps.probed(3, WORSE, 64)
    wait_for(lambda: fault.met >= 2, "the first try")
    parts.swaps.probed(3, BETTER, 300)  # what was found stays found
    wait_for(lambda: parts.serving == 2, "the rollback")
    assert states(parts) == {1: "good", 2: "good", 3: "bad"}


def test_a_bad_version_that_is_replaced_before_a_fallback_opens_is_bad(parts, monkeypatch):
    accept(parts, 2)
    Fault(parts, monkeypatch, OSError(5, "Input/output error"), 1)
    parts.swaps.probed(2, WORSE, 64)
    assert parts.serving == 2
    accept(parts, 3)
    assert states(parts) == {1: "good", 2: "bad", 3: "pending"}


def test_the_learner_hears_that_the_best_version_is_bad(parts, told):
    accept(parts, 2)
    weights = put(parts.versions, network(3))
    parts.promotion.consider(3, weights_digest(weights), Scores(100, 80, 90, 89))
    assert parts.versions.manifest.best == 2
    told.heard.clear()
    parts.swaps.probed(2, WORSE, 64)
    assert told.heard == [("serves", 3, 3, False), ("watch", [(3, 1, 0)])]


def test_one_that_is_never_compared_gives_way(parts):
    for number in range(2, 8):
        accept(parts, number)
    assert states(parts)[7] == "pending"
    assert 2 not in states(parts)  # pruned; it was replaced, and 5 is looked after
    parts.swaps.probed(5, BETTER, 100)
    assert states(parts)[5] == "good"


def test_what_a_trial_is_compared_with_stays(parts):
    accept(parts, 2, good=True)
    accept(parts, 3)
    accept(parts, 4)
    parts.swaps.probed(4, BETTER, 100)
    for number in (5, 6, 7):  # 3 is compared with 2, which is neither newest good nor best
        parts.swaps.probed(3, Paired(1, 1, 1, 0), number)
        accept(parts, number)
    assert {2, 3} <= states(parts).keys()


def test_without_anything_to_compare_it_with_a_trial_gives_way_at_once(parts):
    accept(parts, 2)
    parts.swaps._trials[0].against = None
    accept(parts, 3)
    assert states(parts)[2] == "replaced"


def test_a_rollback_goes_to_what_is_good(parts):
    accept(parts, 2)
    accept(parts, 3)
    with pytest.raises(NoPreviousError, match=r"not proved itself.*leave out `to`.*activate"):
        parts.swaps.rollback(2, "")
    parts.swaps.activate(2, "")
    assert states(parts) == {1: "good", 2: "pending", 3: "replaced"}
    with pytest.raises(NoPreviousError, match="not proved itself"):
        parts.swaps.rollback(3, "")
    assert parts.swaps.rollback(None, "").active == 1
    accept_after(parts, 4)
    parts.swaps.activate(1, "")
    assert parts.versions.manifest.previous == 4


def accept_after(parts, number: int) -> None:
    """A good candidate, once the learner has gone back."""
    parts.swaps.retreated(parts.versions.manifest.retreat)
    accept(parts, number, good=True)


def test_a_version_that_was_on_probation_goes_on_after_a_start(tmp_path):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2)
        accept(parts, 3)
        assert states(parts) == {1: "good", 2: "pending", 3: "pending"}
    with daemon_parts(tmp_path) as parts:
        assert states(parts) == {1: "good", 2: "pending", 3: "pending"}
        told = Told()
        parts.swaps.follow(told)
        assert told.heard == [("watch", [(2, 1, 0), (3, 1, 0)])]
        parts.swaps.probed(3, BETTER, 100)
        assert states(parts)[3] == "good"


def interrupted(folder, *, answers: bool) -> int:
    """A start that ends without a stop; which version served."""
    with daemon_parts(folder) as parts:
        parts.swaps.start()
        if answers:
            parts.slot.answered(parts.slot.current)
            versions = parts.versions
            wait_for(lambda: versions.manifest.entry(2).attempts == 0, "the start to be settled")
        parts.swaps._stopping = True  # its thread ends, and nothing is written any more
        parts.swaps._wake.set()
        parts.swaps._thread.join(10)
        return parts.serving


@pytest.mark.parametrize("answers", [True, False])
def test_only_starts_that_end_before_they_have_answered_count(tmp_path, answers):
    with daemon_parts(tmp_path) as parts:
        accept(parts, 2)
    served = [interrupted(tmp_path, answers=answers) for _ in range(4)]
    assert served == ([2, 2, 2, 2] if answers else [2, 2, 2, 1])
