"""How long a learner that ended waits, and when the block it ended at is passed over."""

from __future__ import annotations

import functools
from contextlib import closing

import pytest

from daemon.store import SampleReader, SampleStore
from daemon.supervision import backoff
from daemon.supervision.backoff import Backoff, Relapses
from tests.daemon_fixtures import daemon_parts, restarts, running, starts
from tests.running import wait_for as wait_for_long
from tests.test_learner import SETTINGS, SPEC, fill, make_learner

wait_for = functools.partial(wait_for_long, seconds=10)


def test_the_pause_grows_until_something_is_learned():
    back_off = Backoff()
    assert [back_off.pause("crash", learned=False) for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert [back_off.pause("killed", learned=True) for _ in range(3)] == [0.5] * 3
    assert [back_off.pause("oom", learned=False) for _ in range(2)] == [1, 2]


def test_what_does_not_help_soon_waits_long():
    back_off = Backoff()
    assert back_off.pause("settings", learned=False) == 60
    assert back_off.pause("storage", learned=True) == 30


def test_ends_in_vain_are_told():
    back_off = Backoff()
    back_off.pause("crash", learned=False)
    back_off.pause("crash", learned=False)
    assert back_off.in_vain is None
    back_off.pause("oom", learned=False)
    assert back_off.in_vain == (
        "the learner has ended 3 times in a row before it had learned anything, at last for oom: "
        "see the log"
    )
    back_off.pause("killed", learned=True)
    assert back_off.in_vain is None


@pytest.mark.parametrize(
    ("ends", "passed_over"),
    [
        ([("crash", 64), ("crash", 64)], None),
        ([("crash", 64), ("hang", 64), ("crash", 64)], 64),
        ([("crash", 64), ("crash", 128), ("crash", 64)], None),
        ([("killed", 64), ("oom", 64), ("killed", 64), ("storage", 64)], None),
        ([("crash", 64), ("killed", 64), ("crash", 64), ("crash", 64)], 64),
        ([("crash", None)] * 5, None),
        ([("crash", 64)] * 3 + [("killed", 192)], 64),
        ([("crash", 64)] * 3 + [("crash", 128)], None),
    ],
)
def test_only_crashes_and_hangs_at_one_place_blame_the_block_there(ends, passed_over):
    relapses = Relapses()
    told = [relapses.ended(reason, place) for reason, place in ends]
    assert told.count(True) <= 1  # not again at each later end
    assert relapses.take() == passed_over


def test_a_block_is_named_once_and_the_next_one_at_that_place_is_blamed_anew():
    relapses = Relapses()
    for _ in range(2):
        assert [relapses.ended("crash", 64) for _ in range(3)] == [False, False, True]
        assert [relapses.take(), relapses.take()] == [64, None]


def test_where_no_block_is_to_blame_few_are_passed_over_until_a_verdict():
    relapses = Relapses()

    def passed_over() -> int:
        found = [(relapses.ended("crash", 64), relapses.take()) for _ in range(45)]
        assert all(told == (place is not None) for told, place in found)
        return sum(told for told, _ in found)

    assert passed_over() == 3
    relapses.judged()
    assert passed_over() == 3


def test_learning_gets_past_one_bad_block_after_the_other(tmp_path):
    """A real network; where a learner would die of a block, it ends here, and the next begins."""
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=999)
    with closing(store):
        fill(store, 250)
    size = SETTINGS.block_samples
    rows = [row.seq for row in SampleReader(tmp_path, SPEC).training(0, 1000)[0]]
    bad = set(rows[2 * size : 4 * size])
    relapses, crashes = Relapses(), 0
    first = make_learner(tmp_path)
    first.learn_block()
    first.save()  # two blocks before the place
    while crashes < 7:
        learner = make_learner(tmp_path)
        assert learner.restore()
        if (place := relapses.take()) is not None:
            learner.pass_over(place)
            learner.save()
        while learner.backlog():
            place = learner.last_seq
            if not bad.isdisjoint(row.seq for row in learner.next_block()[0]):
                break
            learner.learn_block()
        else:
            break
        crashes += 1
        relapses.ended("crash", place)
    assert crashes == 6
    assert learner.score.total == len(rows) - len(bad)


def test_a_learner_that_dies_of_two_blocks_in_a_row_is_told_to_pass_over_each(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
progress(64, 1)
if begin["pass_over"] == 64: open(sys.argv[1], "a").write("told ")
if not os.path.exists(sys.argv[1]) or open(sys.argv[1]).read() != "told told ": os.abort()
progress(128, 1)
until_closed()
"""
    with daemon_parts(tmp_path) as parts, running(parts, script, str(tmp_path / "told")):
        wait_for(lambda: parts.reading("ffedge_learn_samples_total") == 7 * 64 + 128, "life after")
        assert restarts(parts, "crash") == 6
        assert len(starts(parts)) == 7


def test_one_that_dies_before_it_learns_says_so_to_whoever_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)
    with daemon_parts(tmp_path) as parts, running(parts, "os.abort()") as supervisor:
        wait_for(lambda: supervisor.paused, "the word")
        assert "3 times in a row before it had learned anything, at last for crash" in (
            supervisor.paused
        )


def test_a_first_block_that_is_passed_over_fixes_no_standardisation(tmp_path):
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=999)
    with closing(store):
        fill(store, 30)
        learner = make_learner(tmp_path)
        learner.pass_over(0)
        assert [note.kind for note in learner.notes] == ["passed_over"]
        assert learner.learn_block().samples == 0
        assert learner.last_seq > 0
        assert not learner.begun
        fill(store, 100, seed=1)
        learner.learn_block()
        assert learner.begun
