"""Back to the last good version: the right checkpoint, and nothing of what came after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.learning import checkpoints
from daemon.learning.checkpoints import Checkpoints
from daemon.learning.learner import Learner
from daemon.store import SampleStore
from tests.test_learner import exported, fill, make_learner
from tests.test_learner_revisions import content, trained_on


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


def learned(folder: Path) -> tuple[Learner, dict[int, dict[str, bytes]]]:
    """Versions 2 to 5 proposed, two blocks apart, and what each holds."""
    learner = make_learner(folder)
    versions = {}
    for version in (2, 3, 4, 5):
        learner.learn_block()
        learner.learn_block()
        learner.save(version)
        versions[version] = exported(learner)
    return learner, versions


def test_it_goes_back_to_where_the_good_version_was_proposed(
    store: SampleStore, tmp_path: Path
) -> None:
    """Version 3 turns out to be good after 4 and 5 were proposed and checkpoints went on."""
    fill(store, 500)
    learner, versions = learned(tmp_path)
    learner.checkpoints.mark_good(3)
    learner.learn_block()
    learner.save()
    between, total = learner.last_seq, learner.score.total
    memory = make_learner(tmp_path)
    memory._state.load((tmp_path / "checkpoint.good-3.safetensors").read_bytes())
    good_seq = memory.last_seq
    learner.retreat(3)
    assert exported(learner)["units.0.weight.codes"] == versions[3]["units.0.weight.codes"]
    assert learner.last_seq == between > good_seq
    assert learner.score.total == total  # what was found stays found
    assert [note.kind for note in learner.notes] == ["retreated"]
    assert not [*tmp_path.glob("*proposed*")]
    # Neither learned again nor replayed.
    gone = {row.seq for row in learner._reader.training(good_seq, 1000)[0] if row.seq <= between}
    contents = {content(learner, seq) for seq in gone}
    assert len(contents) > 100
    seen = trained_on(learner)
    learner.rehearse(20)
    while learner.learn_block().samples:
        pass
    assert len(seen) > 1000
    assert contents.isdisjoint(seen)
    resumed = make_learner(tmp_path)
    assert resumed.restore()
    assert resumed.last_seq == between
    assert max(s.seq for s in resumed._state.memory.samples) <= good_seq


def test_without_a_good_version_the_network_begins_anew_on_what_comes(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 200)
    learner = make_learner(tmp_path)
    fresh = exported(learner)
    learner.learn_block()
    learner.learn_block()
    learner.save(2)
    through = learner.last_seq
    learner.retreat(5)
    assert exported(learner) == fresh
    assert [note.kind for note in learner.notes] == ["began_anew"]
    assert (learner.last_seq, len(learner._state.memory)) == (through, 0)
    assert learner.learn_block().samples > 0
    assert min(s.seq for s in learner._state.memory.samples) > through


def test_it_goes_back_no_further_up_than_the_version_that_serves(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 500)
    learner, versions = learned(tmp_path)
    for version in (2, 3, 5):
        learner.checkpoints.mark_good(version)
    name = "units.0.weight.codes"
    learner.retreat(4)
    assert exported(learner)[name] == versions[3][name]
    (tmp_path / "checkpoint.good-3.safetensors").write_bytes(b"damaged")
    learner.retreat(4)
    assert exported(learner)[name] == versions[2][name]
    assert "version 2" in learner.notes[-1].text


def test_a_sample_that_was_withdrawn_is_not_replayed_after_a_retreat(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 500)
    learner, _ = learned(tmp_path)
    learner.checkpoints.mark_good(2)
    withdrawn = learner._state.memory.samples[0].seq
    store.withdraw(f"s-{withdrawn}").result(10)
    learner.retreat(5)
    learner.rehearse(1)
    held = [sample.seq for sample in learner._state.memory.samples]
    assert held
    assert withdrawn not in held


def test_twice_is_as_once(store: SampleStore, tmp_path: Path) -> None:
    """The server tells a learner again that died before it could say that it had gone back."""
    fill(store, 500)
    learner, _ = learned(tmp_path)
    learner.checkpoints.mark_good(4)
    learner.retreat(5)
    once = (exported(learner), learner.last_seq)
    again = make_learner(tmp_path)
    assert again.restore()
    again.retreat(5)
    assert (exported(again), again.last_seq) == once


def test_a_checkpoint_that_cannot_be_written_leaves_the_retreat_to_be_done(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 500)
    learner, versions = learned(tmp_path)
    learner.checkpoints.mark_good(3)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "replace_file", full)
        with pytest.raises(OSError, match="No space"):
            learner.retreat(5)
    resumed = make_learner(tmp_path)
    assert resumed.restore()
    assert exported(resumed) == versions[5]
    resumed.retreat(5)
    name = "units.0.weight.codes"
    assert exported(resumed)[name] == versions[3][name]


def test_a_copy_that_cannot_be_read_behind_a_damaged_one_leaves_the_retreat_to_be_done(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 500)
    learner, versions = learned(tmp_path)
    for version in (2, 3):
        learner.checkpoints.mark_good(version)
    (tmp_path / "checkpoint.good-3.safetensors").write_bytes(b"damaged")
    stood = learner.last_seq, learner.score.total
    read_good = learner.checkpoints.read_good

    def unreadable(version: int) -> bytes | None:
        if version == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_good(version)

    with monkeypatch.context() as patch:
        patch.setattr(learner.checkpoints, "read_good", unreadable)
        with pytest.raises(OSError, match="Input/output"):
            learner.retreat(5)
    learner.retreat(5)
    name = "units.0.weight.codes"
    assert exported(learner)[name] == versions[2][name]
    assert (learner.last_seq, learner.score.total) == stood


class Killed(BaseException):
    """The process ends here."""


def files(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("second_names", [True, False])
def test_each_version_has_its_own_checkpoint_whenever_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_names: bool
) -> None:
    """Stopped before each call to the system in turn, then gone on with as after a restart."""
    calls = ("link", "fsync")

    def stopping_at(number: int, patch: pytest.MonkeyPatch) -> list[str]:
        made: list[str] = []
        for name in calls:
            real = getattr(os, name)

            def call(*args: object, real=real, name: str = name) -> object:
                if len(made) == number:
                    raise Killed
                made.append(name)
                if name == "link" and not second_names:
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
                return real(*args)

            patch.setattr(os, name, call)
        return made

    number, whole = 0, False
    while not whole:
        folder = tmp_path / str(number)
        folder.mkdir()
        steady = files(folder)
        steady.write(b"of 2")
        steady.keep(2)
        steady.mark_good(2)
        steady.write(b"of 3")
        with monkeypatch.context() as patch:
            stopping_at(number, patch)
            try:
                steady.keep(3)
                steady.write(b"later")
                steady.mark_good(3)
                whole = True
            except Killed:
                pass
        assert files(folder).read() in (b"of 3", b"later")
        assert files(folder).read_good(2) == b"of 2"
        assert files(folder).read_good(3) in (None, b"of 3")
        if files(folder).read_good(3) is None:
            again = files(folder)
            if again.read() == b"of 3":
                again.keep(3)  # proposed again
            again.write(b"still later")
            again.mark_good(3)
        assert files(folder).read_good(3) == b"of 3"
        number += 1
    assert number > 4


def named(folder: Path) -> dict[str, bytes]:
    """Each copy and what it holds."""
    start, end = "checkpoint.", ".safetensors"
    copies = [path for path in folder.iterdir() if path.name != start[:-1] + end]
    return {p.name.removeprefix(start).removesuffix(end): p.read_bytes() for p in copies}


def test_what_is_refused_or_undecided_for_long_leaves_no_file(tmp_path: Path) -> None:
    kept = files(tmp_path)
    for version in range(2, 20):
        kept.write(b"of %d" % version)
        kept.keep(version)
        if version % 2:
            kept.forget(version)
    left = {f"proposed-{n}": b"of %d" % n for n in (10, 12, 14, 16, 18)}
    assert named(tmp_path) == left
    assert kept.mark_good(18)
    assert named(tmp_path)["good-18"] == b"of 18"
    assert kept.mark_good(18)
    assert not kept.mark_good(5)  # of which there is nothing any more
    kept.forget_proposed(but=12)
    assert named(tmp_path) == {"proposed-12": b"of 12", "good-18": b"of 18"}


def test_what_is_on_trial_keeps_its_copy_however_many_are_proposed_meanwhile(
    tmp_path: Path,
) -> None:
    """On a slow stream: a version needs many blocks to pass, and each proposes another."""
    kept = files(tmp_path)
    kept.on_trial = {2}
    for version in range(2, 30):
        kept.write(b"of %d" % version)
        kept.keep(version)
    assert len(named(tmp_path)) == 1 + 6
    assert kept.mark_good(2)
    assert kept.read_good(2) == b"of 2"


def test_good_versions_keep_theirs_the_newest_three_unless_they_turn_out_bad(
    tmp_path: Path,
) -> None:
    kept = files(tmp_path)
    for version in range(2, 7):
        kept.write(b"of %d" % version)
        kept.keep(version)
        assert kept.mark_good(version)
    assert named(tmp_path) == {"good-4": b"of 4", "good-5": b"of 5", "good-6": b"of 6"}
    kept.write(b"of 7")
    kept.keep(7)
    kept.settle([1, 3, 5, 7])  # 6 and 4 were found bad, and 7 passed, while nobody listened
    assert kept.good() == [7, 5]
    assert kept.read_good(7) == b"of 7"


def test_what_takes_long_is_said_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing a large checkpoint to a slow card, else, is a hang to whoever watches."""
    kept = files(tmp_path)
    events: list[object] = []
    kept.before = lambda what, size: events.append((what, size))
    assert kept.read() is None
    monkeypatch.setattr(checkpoints, "replace_file", lambda p, content: events.append(content))
    kept.write(b"four")
    assert events == [("the checkpoint is written", 4), b"four"]
    (tmp_path / "checkpoint.safetensors").write_bytes(b"fives")
    kept.read()
    assert events[2:] == [("a checkpoint is read", 5)]


def test_a_checkpoint_written_later_does_not_change_a_copy(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.write(b"first")
    kept.keep(2)
    kept.keep(2)  # again, after a restart
    assert len([*tmp_path.iterdir()]) == 2
    kept.write(b"second")
    kept.mark_good(2)
    assert (kept.read(), kept.read_good(2)) == (b"second", b"first")
