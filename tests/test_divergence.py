"""Learning that diverges ends no process and no stream: what spoils it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.ingest.sample import Sample, pack_features
from daemon.learning.course import Course
from daemon.learning.learner import Learner
from daemon.learning.state import DivergedError, LearnerState
from daemon.messages import JobFailed, Judged, Noted, Proposed
from daemon.store import SampleStore, StoredSample
from engines import StepReport, TrainEngine
from tests.test_learner import SETTINGS, exported, fill, make_learner
from tests.test_learner_process import running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


def spoiled_by(learner: Learner, seqs: set[int]) -> None:
    """From now on a step that meets one of these samples has a loss that is no number."""
    rows = learner._reader.samples(sorted(seqs))
    bad = {row.tobytes() for row in learner._reader.batch(rows)[0]}
    open_engine = learner._open_engine

    def guard(engine: TrainEngine) -> TrainEngine:
        train_step = engine.train_step

        def step(x: np.ndarray, labels: np.ndarray, **how: object) -> StepReport:
            if bad & {row.tobytes() for row in x}:
                return StepReport((float("nan"), 1.0))
            return train_step(x, labels, **how)

        engine.train_step = step  # type: ignore[method-assign]
        return engine

    learner._open_engine = lambda: guard(open_engine())
    guard(learner._state.engine)


def block(learner: Learner, number: int) -> set[int]:
    """The samples of a full block."""
    size = SETTINGS.block_samples
    rows, _ = learner._reader.training(0, 1000)
    return {row.seq for row in rows[size * number : size * (number + 1)]}


def kinds(learner: Learner) -> list[str]:
    return [note.kind for note in learner.notes]


def learn_all(learner: Learner) -> int:
    calls = 0
    while learner.backlog():
        learner.learn_block()
        calls += 1
        assert calls < 100
    return calls


def test_the_block_is_left_out_and_what_came_before_it_is_learned_again(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 300)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    bad = block(learner, 2)
    spoiled_by(learner, bad)
    assert learner.learn_block().samples == SETTINGS.block_samples
    assert learner.learn_block().steps == 0  # the bad one
    assert (kinds(learner), learner.last_seq) == (["diverged"], max(block(learner, 0)))
    learn_all(learner)
    assert kinds(learner) == ["diverged"]
    assert bad.isdisjoint(sample.seq for sample in learner._state.memory.samples)
    assert block(learner, 1) <= {sample.seq for sample in learner._state.memory.samples}
    assert learner.score.total == store.counts.to_learn - len(bad)


def test_the_learning_rate_is_halved_until_a_candidate_is_accepted(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 200)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    spoiled_by(learner, block(learner, 1))
    learner.learn_block()
    rates: list[float] = []
    train_step = learner._state.engine.train_step

    def spy(x: np.ndarray, labels: np.ndarray, **how: float) -> StepReport:
        rates.append(how["learning_rate"])
        return train_step(x, labels, **how)

    learner._state.engine.train_step = spy  # type: ignore[method-assign]
    learner.learn_block()
    weights = learner.export(version=2, parent=1)
    scores = learner.compare(weights, weights, [weights])
    learner.judged(2, scores, accepted=False)
    learner.rehearse(1)
    assert set(rates) == {SETTINGS.learning_rate / 2}
    learner.judged(3, scores, accepted=True)
    rates.clear()
    learner.rehearse(1)
    assert rates == [SETTINGS.learning_rate]


def test_the_second_time_from_a_checkpoint_the_network_begins_anew_on_what_memory_holds(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 400)
    learner = make_learner(tmp_path)
    for _ in range(3):
        learner.learn_block()
    learner.save()
    remembered = learner._state.memory.samples
    before = exported(learner)
    spoiled_by(learner, block(learner, 3) | block(learner, 4))
    learner.learn_block()
    assert kinds(learner) == ["diverged"]
    assert exported(learner) == before
    learner.learn_block()
    assert kinds(learner) == ["diverged", "began_anew"]
    assert exported(learner) != before
    assert learner._state.memory.samples == remembered
    weights = learner.export(version=9, parent=None)
    assert learner.compare(weights, weights, [weights]).candidate_correct > 0.8 * (
        store.counts.holdout
    )
    learn_all(learner)
    assert kinds(learner) == ["diverged", "began_anew"]


def test_what_is_learned_after_going_back_was_not_judged(
    store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 400)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    learner.learn_block()
    judged = learner.export(version=2, parent=None)
    learner.judged(2, learner.compare(judged, judged, [judged]), accepted=True)
    assert not learner.unjudged
    steps = learner.steps
    spoiled_by(learner, block(learner, 2))
    learner.learn_block()
    learner.learn_block()
    assert (kinds(learner), learner.steps) == (["diverged"], steps)
    assert learner.unjudged  # other samples, as many steps


def test_what_was_left_out_stays_so_after_a_restart(store: SampleStore, tmp_path: Path) -> None:
    fill(store, 300)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    bad = block(learner, 2)
    spoiled_by(learner, bad)
    learner.learn_block()
    learner.learn_block()
    learner.save()
    resumed = make_learner(tmp_path)
    assert resumed.restore()
    for each in (learner, resumed):
        learn_all(each)
    assert bad.isdisjoint(sample.seq for sample in resumed._state.memory.samples)
    assert exported(resumed) == exported(learner)


@pytest.mark.parametrize("saved", [False, True])
def test_learning_that_always_diverges_ends_with_the_stream(
    store: SampleStore, tmp_path: Path, saved: bool
) -> None:
    fill(store, 300)
    learner = make_learner(tmp_path)
    if saved:
        learner.learn_block()
        learner.save()
    spoiled_by(learner, {row.seq for row in learner._reader.training(0, 1000)[0]})
    assert learn_all(learner) <= 20
    assert kinds(learner).count("diverged") == 1
    learner.export(version=2, parent=1)  # what may serve


def test_a_learning_rate_far_too_large_ends_nothing(store: SampleStore, tmp_path: Path) -> None:
    """Whether or not a loss stops being a number at it, all of the stream is passed, in the end."""
    fill(store, 200)
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    learner = make_learner(tmp_path, wild)
    learn_all(learner)
    assert "diverged" in kinds(learner)


@pytest.mark.parametrize("first", [True, False])
def test_features_at_the_end_of_float32_end_nothing(
    store: SampleStore, tmp_path: Path, first: bool
) -> None:
    draw = np.random.default_rng(0)
    huge = [
        Sample(*pack_features((draw.choice([-1, 1], 16) * 1e38).astype(np.float32)), f"c{i % 3}",
               None, "bad", None)
        for i in range(60)
    ]  # fmt: skip
    if first:
        store.add(huge).result(10)
    fill(store, 200)
    if not first:
        store.add(huge).result(10)
        fill(store, 100, seed=1)
    learner = make_learner(tmp_path)
    learn_all(learner)
    learner.export(version=2, parent=1)
    assert np.isfinite(np.array(learner.score.accuracy))


def test_a_candidate_that_must_not_serve_costs_only_its_job(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = iter([True])
    export = LearnerState.export

    def once(self: LearnerState, version: int, parent: int | None) -> object:
        if version and next(spoiled, False):
            raise DivergedError("array 'units.0.bias' holds a value that is not finite")
        return export(self, version, parent)

    monkeypatch.setattr(LearnerState, "export", once)
    fill(store, 100)
    with running(tmp_path) as peer:
        assert peer.hear_next(Noted).kind == "diverged"
        assert "not finite" in peer.hear_next(JobFailed).error
        fill(store, 100, seed=1)
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_stretches_that_are_left_out_are_skipped_and_forgotten_when_passed() -> None:
    course = Course()
    assert course.diverged((10, 20), 5)
    assert not course.diverged((20, 30), 5)
    assert course.diverged((40, 50), 6)
    assert [course.skip(seq) for seq in (9, 10, 19, 20, 30, 45)] == [9, 30, 30, 30, 30, 50]
    samples = [StoredSample(seq, 0, "uint8", b"") for seq in (10, 11, 30, 31, 50)]
    assert [sample.seq for sample in course.kept(samples)] == [10, 31]
    assert course.rate == 1 / 8
    fields = course.fields(30)
    assert (fields["rate"], fields["left_out"]) == (1 / 8, [[40, 50]])
    other = Course()
    other.load(fields)
    assert other.skip(40) == 50
    assert not other.diverged((50, 60), 6)  # also where the first time was before a restart
