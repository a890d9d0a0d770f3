"""The learner's loop over real pipes: what it says, when it learns, what a restart makes good."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from daemon import durable
from daemon.config import LearnerSettings
from daemon.learning import process as learner_process
from daemon.learning.probe import Probe
from daemon.learning.process import LearnerProcess
from daemon.learning.reports import COMPILE_SECONDS
from daemon.messages import (
    Alive,
    Begin,
    Busy,
    FromLearner,
    JobFailed,
    JobStarted,
    Judged,
    Named,
    Pace,
    Passed,
    Probed,
    Progress,
    Proposed,
    Retreated,
    Serves,
    Started,
    Train,
    Watch,
    Watched,
    send,
)
from daemon.serving.versions import VersionStore
from daemon.store import SampleReader, SampleStore
from engines import open_predict_engine, open_train_engine
from tests.test_learner import SPEC, fill, make_learner

SETTINGS = LearnerSettings(
    block_samples=32, steps_per_block=4, batch_samples=16, max_wait_seconds=0.3, train_steps=4
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


class Peer:
    """The server's end of the pipes."""

    def __init__(self, commands: int, reports: int) -> None:
        self._commands = os.fdopen(commands, "wb")
        self._reports = os.fdopen(reports, "rb")
        self.active = (0, "")  # what serves, and its digest

    def say(self, message: msgspec.Struct) -> None:
        send(self._commands, message)

    def hear(self) -> FromLearner:
        return msgspec.json.decode(self._reports.readline(), type=FromLearner)

    def hear_next(self, *kinds: type) -> FromLearner:
        """The next report of these kinds; those of other kinds are passed over."""
        while not isinstance(message := self.hear(), kinds):
            pass
        return message

    def close(self) -> None:
        self._commands.close()
        self._reports.close()


@contextmanager
def running(
    folder: Path,
    settings: LearnerSettings = SETTINGS,
    pass_over: int | None = None,
    next_version: int = 2,
    active: tuple[int, str] | None = None,
) -> Iterator[Peer]:
    """A learner process in a thread; what is active is an untrained version 1 unless said."""
    versions = VersionStore(folder / "versions", keep=3)
    versions.start(
        lambda n: open_train_engine(SPEC, seed=0).export(
            classes=(), version=n, parent=None, last_seq=0
        )
    )
    commands_in, commands_out = os.pipe()
    reports_in, reports_out = os.pipe()

    def work() -> None:  # SQLite connections stay in the thread that opened them
        with (
            os.fdopen(reports_out, "wb") as reports,
            os.fdopen(commands_in, "rb", buffering=0) as commands,
        ):
            learner = make_learner(folder, settings)
            probe = Probe(
                SampleReader(folder, SPEC),
                open_predict_engine("torch").open,
                versions.verify,
            )
            with contextlib.suppress(SystemExit):
                LearnerProcess(learner, probe, versions, settings, commands, reports).run()

    thread = threading.Thread(target=work)
    thread.start()
    peer = Peer(commands_out, reports_in)
    peer.active = active = active or (1, versions.manifest.entry(1).sha256)
    peer.say(Begin(active, active, next_version, pass_over=pass_over))
    try:
        yield peer
    finally:
        peer._commands.close()
        thread.join(20)
        peer.close()
        assert not thread.is_alive()


def good(peer: Peer) -> Named:
    """Version 2, once the server has found it good."""
    proposed = peer.hear_next(Proposed)
    peer.say(Judged(2, accepted=True))
    two = (2, proposed.sha256)
    peer.say(Passed(two))
    return two


def test_learns_a_full_block_and_proposes(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        assert isinstance(started := peer.hear(), Started)
        assert not started.resumed
        assert peer.hear_next(JobStarted) == JobStarted("samples", 0)
        proposed = peer.hear_next(Proposed)
        assert proposed.version == 2
        assert proposed.scores.n == store.counts.holdout
        assert (tmp_path / "versions" / "2.safetensors").exists()
        peer.say(Judged(2, accepted=True))


def test_a_block_that_is_to_be_passed_over_is_neither_predicted_nor_learned(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    training = [sample.seq for sample in SampleReader(tmp_path, SPEC).training(0, 1000)[0]]
    with running(tmp_path, pass_over=0) as peer:
        peer.say(Watch([Watched(peer.active, peer.active, 0)]))
        peer.hear_next(JobStarted)
        predicted, learned = peer.hear_next(Probed), peer.hear_next(Progress)
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=False))
        assert predicted.n == learned.samples == SETTINGS.block_samples
        assert predicted.through_seq == learned.last_seq
        assert learned.last_seq == training[2 * SETTINGS.block_samples - 1]
    learner = make_learner(tmp_path, SETTINGS)
    assert learner.restore()
    held = {sample.seq for sample in learner._state.memory.samples}
    assert held  # of the second block on
    assert held.isdisjoint(training[: SETTINGS.block_samples])


def test_what_is_to_be_passed_over_is_kept_before_anything_is_learned(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 30)
    told = {sample.seq for sample in SampleReader(tmp_path, SPEC).training(0, 1000)[0]}
    with running(tmp_path, pass_over=0) as peer:
        peer.hear_next(Started)
    fill(store, 100, seed=1)
    with running(tmp_path) as peer:
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=False))
    learner = make_learner(tmp_path, SETTINGS)
    assert learner.restore()
    assert told.isdisjoint(sample.seq for sample in learner._state.memory.samples)


def test_the_first_step_may_take_long_where_something_is_compiled_for_it(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    compiling = SETTINGS.model_copy(update={"fusion": "compiled"})
    with running(tmp_path, compiling) as peer:
        peer.hear_next(JobStarted)
        assert peer.hear() == Busy("the first step may compile", COMPILE_SECONDS)
        peer.hear_next(Proposed)
        peer.say(Judged(2, accepted=False))
        peer.say(Train(4))
        peer.hear_next(JobStarted)
        assert isinstance(peer.hear(), Alive)
    with running(tmp_path) as peer:
        peer.hear_next(JobStarted)
        assert peer.hear() == Alive()
        peer.hear_next(Proposed)
        peer.say(Judged(2, accepted=False))


def test_too_few_samples_are_not_learned_before_the_first_block(
    store: SampleStore, tmp_path: Path
) -> None:
    """The first block fixes the standardisation, so one early sample must not decide it."""
    fill(store, 10)
    with running(tmp_path) as peer:
        peer.hear_next(Started)
        # Longer than the time that samples may wait: three idle reports, a second apart.
        idle = [peer.hear() for _ in range(3)]
        assert all(isinstance(report, Progress) and report.backlog for report in idle)
        fill(store, 90, seed=1)
        assert peer.hear_next(JobStarted).trigger == "samples"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        # What is left is less than a block; now it is learned once it has waited.
        assert peer.hear_next(JobStarted).trigger == "time"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_what_was_learned_but_not_judged_is_proposed_after_a_restart(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        first = peer.hear_next(Proposed)  # and the server is gone before it has judged
    with running(tmp_path) as peer:
        assert peer.hear_next(Started).resumed
        assert peer.hear_next(JobStarted).trigger == "resumed"
        again = peer.hear_next(Proposed)
        assert (again.version, again.sha256) == (first.version, first.sha256)
        peer.say(Judged(2, accepted=False))
    with running(tmp_path, next_version=3) as peer:  # nothing more was learned, and it is decided
        assert peer.hear_next(Started).resumed
        assert peer.hear_next(JobStarted).trigger == "time"  # samples that are left
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_training_with_nothing_to_learn_fails_and_proposes_no_empty_network(
    store: SampleStore, tmp_path: Path
) -> None:
    with running(tmp_path) as peer:
        peer.say(Train(4))
        assert peer.hear_next(JobStarted).trigger == "manual"
        assert "nothing new has been learned" in peer.hear_next(JobFailed, Proposed).error
        fill(store, 100)
        assert peer.hear_next(JobStarted).trigger == "samples"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_a_rollback_does_not_wait_for_the_end_of_a_long_job(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 1e9)
    fill(store, 1000)
    with running(tmp_path) as peer:
        peer.hear_next(JobStarted)
        peer.say(Serves(peer.active, True, peer.active, 7))
        assert peer.hear_next(Retreated, Proposed) == Retreated(7)
        # The job goes on from there; what is new is learned in it.
        last = peer.hear_next(Progress)
        assert last.backlog >= SETTINGS.block_samples
        while not isinstance(report := peer.hear_next(Progress, JobStarted, Proposed), Proposed):
            assert isinstance(report, Progress)
            last = report
        assert last.backlog < SETTINGS.block_samples
        peer.say(Judged(report.version, accepted=True))


def test_a_job_whose_learning_a_rollback_has_undone_proposes_no_copy(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    with running(tmp_path) as peer:
        two = good(peer)
        peer.say(Pace(0.02, None))
        assert peer.hear_next(JobStarted).trigger == "time"  # one block, and a slow one
        peer.say(Serves(two, True, two, 7, [2], two))
        assert peer.hear_next(Retreated, Proposed) == Retreated(7)
        assert "nothing new has been learned" in peer.hear_next(Proposed, JobFailed).error


def test_training_asked_for_while_a_verdict_is_awaited_is_not_forgotten(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 50)
    with running(tmp_path) as peer:
        peer.hear_next(Proposed)
        peer.say(Train(5))
        peer.say(Judged(2, accepted=False))
        assert peer.hear_next(JobStarted).trigger == "manual"
        # What had waited to be learned, and then no more than was asked for.
        assert [peer.hear_next(Progress).steps for _ in range(3)] == [2, 4, 1]
        assert peer.hear_next(Proposed).version == 3
        peer.say(Judged(3, accepted=True))


def test_a_disk_that_takes_no_checkpoint_pauses_learning_and_loses_nothing(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    tried: list[str] = []

    def replace_file(path: Path, content: bytes) -> None:
        tried.append(path.name)
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        durable.replace_file(path, content)

    monkeypatch.setattr(learner_process, "_REST_SECONDS", 0.5)
    monkeypatch.setattr(learner_process, "replace_file", replace_file)
    monkeypatch.setattr("daemon.learning.checkpoints.replace_file", replace_file)
    fill(store, 100)
    with running(tmp_path) as peer:
        assert peer.hear_next(JobStarted).trigger == "samples"
        assert "No space left on device" in peer.hear_next(JobFailed).error
        fill(store, 100, seed=1)
        paused = []
        while len(paused) < 3:
            if isinstance(report := peer.hear(), Busy):  # it tries again
                continue
            assert isinstance(report, Progress)  # no job, no other word
            assert report.steps == 0
            paused.append(report)
        assert all("No space left on device" in str(report.paused) for report in paused)
        assert len({report.last_seq for report in paused}) == 1
        peer.say(Train(4))
        assert peer.hear_next(JobStarted).trigger == "manual"
        assert "learning pauses" in peer.hear_next(JobFailed).error
        full.clear()
        # It goes on from where it was: nothing is learned a second time.
        assert peer.hear_next(JobStarted) == JobStarted("resumed", paused[0].last_seq)
        proposed = peer.hear_next(Proposed)
        peer.say(Judged(proposed.version, accepted=True))
        assert peer.hear_next(Progress, JobStarted)
    assert tried.count("2.safetensors") == 2


def test_a_rollback_that_the_disk_does_not_take_ends_the_job_and_is_made_good(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def replace_file(path: Path, content: bytes) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        durable.replace_file(path, content)

    monkeypatch.setattr(learner_process, "_PROPOSE_SECONDS", 1e9)
    monkeypatch.setattr(learner_process, "_REST_SECONDS", 0.1)
    monkeypatch.setattr("daemon.learning.checkpoints.replace_file", replace_file)
    fill(store, 1000)
    with running(tmp_path) as peer:
        peer.hear_next(JobStarted)
        peer.say(Serves(peer.active, True, peer.active, 7))
        told = (JobStarted, JobFailed, Proposed, Retreated)
        assert "learning pauses" in peer.hear_next(*told).error
        assert peer.hear_next(*told) == Retreated(7)
        assert peer.hear_next(*told).trigger == "samples"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
