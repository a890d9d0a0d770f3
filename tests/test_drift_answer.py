"""A drift alarm, from the stream to the record: a checkpoint, then more of the new, then a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.config import LearnerSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.learning.learner import Learner
from daemon.messages import JobStarted, Judged, Noted, Proposed
from daemon.store import SampleStore
from tests.daemon_fixtures import WAIT_SECONDS, daemon_parts, made
from tests.running import wait_for
from tests.test_learner import SETTINGS, exported, make_learner
from tests.test_learner_process import running

BLOCK = SETTINGS.block_samples
QUICK = SETTINGS.model_copy(update={"drift_steps": 12, "drift_rate": 4.0, "drift_new_ratio": 0.75})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.05, queue_samples=4096)
    yield store
    store.close()


def add(store: SampleStore, count: int, *, turned: bool) -> None:
    """Two classes by the sign of a feature; `turned`: the other way round."""
    draw = np.random.default_rng(count + turned)
    samples = []
    for _ in range(count):
        label = int(draw.integers(2))
        x = draw.normal(scale=0.3, size=16).astype(np.float32)
        x[:8] += 1 if label != turned else -1
        samples.append(Sample(*pack_features(x), f"c{label}", None, "test", None))
    store.add(samples).result(10)


def until_alarm(learner: Learner) -> int:
    while not learner.notes:
        assert learner.learn_block().samples
    return learner.last_seq


def test_an_alarm_comes_soon_and_says_where(store: SampleStore, tmp_path: Path) -> None:
    add(store, 600, turned=False)
    add(store, 400, turned=True)
    learner = make_learner(tmp_path, QUICK)
    found = until_alarm(learner)
    (note,) = learner.notes
    assert (note.kind, note.seq) == ("drift", found)
    assert 600 < found < 600 + 4 * BLOCK
    assert learner.change_seq is not None
    assert abs(learner.change_seq - 600) < 2 * BLOCK


def test_then_steps_are_larger_and_newer_for_a_while(store: SampleStore, tmp_path: Path) -> None:
    add(store, 600, turned=False)
    add(store, 400, turned=True)
    learner = make_learner(tmp_path, QUICK)
    until_alarm(learner)
    rates: list[float] = []
    train_step = learner._state.engine.train_step

    def spy(x: np.ndarray, labels: np.ndarray, **how: float):
        rates.append(how["learning_rate"])
        return train_step(x, labels, **how)

    learner._state.engine.train_step = spy  # type: ignore[method-assign]
    for _ in range(3):
        learner.learn_block()
    usual = QUICK.learning_rate
    assert rates == [4 * usual] * 12 + [usual] * (len(rates) - 12)
    assert [note.kind for note in learner.notes] == ["drift"]


def test_resumed_behind_an_alarm_it_is_as_if_never_stopped(
    store: SampleStore, tmp_path: Path
) -> None:
    add(store, 600, turned=False)
    add(store, 400, turned=True)
    steady = make_learner(tmp_path, QUICK)
    until_alarm(steady)
    steady.learn_block()  # in the middle of the steps in answer
    steady.save()
    resumed = make_learner(tmp_path, QUICK)
    assert resumed.restore()
    assert resumed.change_seq == steady.change_seq
    for learner in (steady, resumed):
        for _ in range(3):
            learner.learn_block()
    assert exported(resumed) == exported(steady)
    for name, array in steady._state.drift.state().items():
        np.testing.assert_array_equal(resumed._state.drift.state()[name], array)


def test_the_process_saves_a_checkpoint_says_so_and_begins_a_job(
    store: SampleStore, tmp_path: Path
) -> None:
    add(store, 600, turned=False)
    with running(tmp_path) as peer:
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        add(store, 600, turned=True)
        while not isinstance(message := peer.hear_next(Noted, Proposed), Noted):
            peer.say(Judged(message.version, accepted=True))
        saved = make_learner(tmp_path)
        assert saved.restore()
        assert saved.last_seq >= message.seq
        assert saved.change_seq is not None
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
        assert peer.hear_next(JobStarted).trigger == "drift"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_the_server_counts_it_and_keeps_it(tmp_path: Path) -> None:
    with daemon_parts(tmp_path) as parts:
        note = Noted("drift", "errors are more frequent since sample 7", 9)
        made(parts, [])._hear(note)
        name = "ffedge_learner_events_total"
        counted = parts.telemetry.registry.get_sample_value(name, {"kind": "drift"})
        assert counted == 1
        kept = wait_for(
            lambda: parts.store.records("learner_drift", 5) or None, "record", WAIT_SECONDS
        )
        assert [(record["kind"], record["seq"]) for record in kept] == [("drift", 9)]


def test_an_answer_is_not_faster_unless_that_is_asked_for() -> None:
    """Twice the rate destroyed what was learned, on streams whose inputs change (MNIST)."""
    assert LearnerSettings().drift_rate == 1.0
